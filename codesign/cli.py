"""The `codesign` command.

Thin: every command parses its words and calls a function of the library. Heavy imports happen inside commands, so
that `--help`, `targets` and `models` answer at once. Bad input ends in one line and exit code 2.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workloads.errors import CodesignError, ConfigError

if TYPE_CHECKING:
    from codesign.subject import Subject

app = typer.Typer(
    name="codesign",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Prune a network for the hardware that runs it: price a PyTorch model on simulated machines, search pruning "
    "choices under a budget, fine-tune the pick and report.\n\nStart with [bold]codesign demo[/bold].",
    epilog="A model is a name of `codesign models`; lower and simulate also take a layer graph (.json), a layer table "
    "('table:resnet50 density=0.5'), a layer in words ('layer:conv c=64 k=64 h=56 r=3') or package.module:function. "
    "A target is a name of `codesign targets`, or a .yaml file.",
)

INTERRUPTED = 130
"""What typer exits with after Ctrl-C."""

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Zoo name, layer graph .json, table:..., layer:..., layers:FILE, my_file:my_net, or a run's folder.",
    ),
]
Weights = Annotated[Path | None, typer.Option(help="Weights to load (.safetensors).", show_default=False)]
Pretrained = Annotated[bool, typer.Option(help="Use the known weights of the zoo model (below CODESIGN_DATA).")]
Shape = Annotated[str | None, typer.Option("--input", help="Input shape for module:function, e.g. 1,3,224,224.")]
TargetName = Annotated[str, typer.Option("--target", help="Machine to price on (`codesign targets`), or a .yaml file.")]
Targets = Annotated[list[str], typer.Option("--target", help="Machine; give several to compare them.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a number of the machine, e.g. memories.0.bandwidth_bytes_per_cycle=4; clock_hz scales these too.",
    ),
]
Data = Annotated[str, typer.Option(help="digits, mnist, cifar10, or my_file:MY_SET; digits_detection for a detector.")]
Unknown = Annotated[str, typer.Option(help="Unknown operators: error, or vector to price as elementwise.")]
Epochs = Annotated[int, typer.Option(min=1, help="Training epochs.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Same seed, same result.")]
Threads = Annotated[int, typer.Option(min=1, help="That share each layer.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Out = Annotated[Path, typer.Option(help="Folder for the results; an interrupted run resumes there.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew in a folder that holds another study.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback()
def _root(debug: Debug = False) -> None:
    """Options of every command."""


@app.command()
def targets(name: Annotated[str | None, typer.Argument(help="Show one machine's numbers and sources.")] = None) -> None:
    """List the machines that price a graph, with the error of each model against published measurements."""
    from codesign import show

    show.targets(name)


@app.command()
def models() -> None:
    """List the networks of the zoo."""
    from codesign import show

    show.models()


@app.command()
def lower(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Write the layer graph here (.json).")] = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    shape: Shape = None,
    unknown: Unknown = "error",
) -> None:
    """Turn a model into a layer graph: loop nests, edges, real zeros."""
    from codesign import show

    show.graph(_subject(model, weights, pretrained, shape, unknown), out)


@app.command()
def simulate(
    model: Model,
    target: Targets,
    weights: Weights = None,
    pretrained: Pretrained = False,
    plan: Annotated[Path | None, typer.Option(help="A pruning plan (.json) to apply first.")] = None,
    calibrate: Annotated[str | None, typer.Option(help="Data set whose images give activation zeros.")] = None,
    change: Changes = None,
    shape: Shape = None,
    unknown: Unknown = "error",
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report into this folder.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Play the first target tile by tile; write a trace for ui.perfetto.dev.")
    ] = None,
) -> None:
    """Price a model on one or several machines, layer by layer."""
    from codesign import show

    subject = _subject(model, weights, pretrained, shape, unknown)
    show.simulation(
        subject, target, plan=plan, calibrate=calibrate, changes=change or [], out=json_out, report=report, trace=trace
    )


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="Zoo name, or my_file:my_net.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Weights file to write (.safetensors).")],
    epochs: Epochs = 10,
    rate: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 0.1,
    weights: Weights = None,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a weights file that is there.")] = False,
) -> None:
    """Train a network of the zoo on a data set."""
    from codesign.train import train_model

    train_model(
        model, data, out, epochs=epochs, rate=rate, weights=weights, seed=seed, device=device, overwrite=overwrite
    )


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="Show one method with its options.")] = None) -> None:
    """List the pruning methods, or explain one and its options."""
    from codesign import show

    show.methods(name)


@app.command()
def prune(
    model: Annotated[str, typer.Argument(help="Zoo name, or my_file:my_net.")],
    data: Data,
    out: Out,
    method: Annotated[
        str, typer.Option(help="A name of `codesign methods`, or dense: train only.")
    ] = "gradual_magnitude",
    density: Annotated[
        float | None,
        typer.Option(help="Short for --option density=...: weights (or channels) to keep, 0..1."),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(help="Short for --option granularity=...: weight, 2:4, 4x1, window, pattern, filter..."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="name=value, an option of the method (`codesign methods NAME`).")
    ] = None,
    target: Targets = ["ethos_u55_256"],  # noqa: B006
    weights: Weights = None,
    pretrained: Pretrained = False,
    scratch: Annotated[bool, typer.Option("--scratch", help="Start from an untrained network.")] = False,
    epochs: Annotated[
        int,
        typer.Option(min=0, help="Training epochs; 0 for methods that prune at once: batch norms are measured anew."),
    ] = 2,
    rate: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 0.02,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 128,
    weight_decay: Annotated[float, typer.Option(help="Of the optimizer.")] = 1e-4,
    distil: Annotated[bool, typer.Option(help="Learn from the dense network's answers too.")] = True,
    attacked: Annotated[
        int, typer.Option(min=0, help="Attack so many test images (FGSM, PGD-10), dense against pruned.")
    ] = 0,
    unknown: Unknown = "error",
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show what would go and its price: nothing is trained or written.")
    ] = False,
) -> None:
    """Prune a network with one method while it trains, test it once, and price it before and after."""
    from codesign import forecast
    from codesign import prune as job
    from codesign.prune_report import report

    short = {"density": density, "granularity": granularity}
    given = [f"{name}={value}" for name, value in short.items() if value is not None]
    origins = [*([str(weights)] if weights else []), *["pretrained"] * pretrained, *["scratch"] * scratch]
    if len(origins) != 1:
        raise ConfigError(f"{model}: start from --weights FILE, --pretrained or --scratch: give exactly one of them")
    config = job.PruneConfig(
        model=model, data=data, method=method, options=job.parse_options(method, [*given, *(option or ())]),
        targets=tuple(target), weights=origins[0], epochs=epochs, rate=rate, batch_size=batch,
        weight_decay=weight_decay, distil=distil, seed=seed, attacked=attacked, unknown=unknown,
    )  # fmt: skip
    if plan:
        return forecast.show(config, out)
    report(config, job.run(config, out, device=device, overwrite=overwrite), out)


@app.command()
def trail(
    folder: Annotated[Path, typer.Argument(help="Folder of a codesign prune with a method that leaves a trail.")],
    min_accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Pick the fastest with this held-out accuracy, 0..1.")
    ] = None,
    max_latency: Annotated[
        float | None, typer.Option(min=0, help="Pick the most accurate with this latency, times the dense one's.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Machine of the run whose latency counts; the first by default.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Retraining of the pick; zeros stay.")] = 2,
    rate: Annotated[float, typer.Option("--lr", help="Peak learning rate of retraining.")] = 0.02,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pick; FOLDER/pick by default.", show_default=False)
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Measure the networks that a run left behind as it removed weights, and pick one by accuracy or latency."""
    from codesign import trail as job

    is_wanted = min_accuracy is not None or max_latency is not None
    if target and not is_wanted:
        raise ConfigError(f"--target {target}: says whose latency picks; give --min-accuracy or --max-latency too")
    wanted = job.Pick(min_accuracy, max_latency, target or "") if is_wanted else None
    job.run(folder, wanted, out or folder / "pick", epochs=epochs, rate=rate, device=device, overwrite=overwrite)


@app.command()
def search(
    model: Annotated[str, typer.Argument(help="Zoo name, or my_file:my_net.")],
    data: Data,
    target: TargetName,
    budget: Annotated[list[str], typer.Option(help="latency=0.7x, latency=2ms, energy=2mJ, macs=0.4x, size=200KB.")],
    out: Out,
    weights: Weights = None,
    epochs: Annotated[int, typer.Option(min=0, help="Fine-tuning epochs of the pick.")] = 2,
    rate: Annotated[float, typer.Option("--lr", help="Peak learning rate of fine-tuning.")] = 0.02,
    density: Annotated[list[float] | None, typer.Option(help="Also offer these weight densities per layer.")] = None,
    granularity: Annotated[
        str, typer.Option(help="Of the weight zeros: weight, 2:4, 4x1, pattern, kernel.")
    ] = "weight",
    keep: Annotated[list[str] | None, typer.Option(help="Channel groups to leave alone.")] = None,
    multiple: Annotated[int | None, typer.Option(help="Offer multiples of this (default: the target's own).")] = None,
    options: Annotated[int, typer.Option(min=2, help="Options per channel group at the most.")] = 8,
    images: Annotated[int, typer.Option(min=10, help="Held-out images for sensitivity and the front.")] = 1000,
    measured: Annotated[int, typer.Option(min=1, help="Candidates of the front whose accuracy is measured.")] = 6,
    generations: Annotated[int, typer.Option(min=1, help="Of the evolutionary search.")] = 60,
    unknown: Unknown = "error",
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Find what to prune for a machine and a budget, fine-tune it, test it once, and write a report."""
    from codesign.job import SearchConfig, run

    config = SearchConfig(
        model=model, data=data, target=target, budgets=tuple(budget), weights=str(weights) if weights else None,
        epochs=epochs, rate=rate, densities=tuple(density or ()), granularity=granularity, keep=tuple(keep or ()),
        multiple=multiple, options=options, images=images, measured=measured, generations=generations, unknown=unknown,
        seed=seed,
    )  # fmt: skip
    run(config, out, device=device, overwrite=overwrite)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a finished search.")]) -> None:
    """Write a study's report again from its stored results."""
    from codesign.job import write_study_report

    print(write_study_report(folder))


@app.command()
def demo(out: Out = Path("runs/demo"), seed: Seed = 0) -> None:
    """The whole path on real handwritten digits in about a minute: train, search, fine-tune, report.

    The trained network is kept beside the results, in OUT-dense, for the next time.
    """
    from codesign.demo import run_demo

    run_demo(out, seed)


@app.command()
def validate(
    target: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TARGET]...", help="Machines, or .yaml files with a .csv beside them; all by default."),
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="Print every row (done where machines are named).")] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit the calibrated parameters again; print them beside the stored ones.")
    ] = False,
    store: Annotated[bool, typer.Option("--store", help="Store the errors that results print beside prices.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write rows and errors here.")] = None,
    docs: Annotated[
        Path | None, typer.Option(help="Rewrite the blocks <!-- validation: NAME --> in Markdown below this folder.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw predicted against published into this folder.")] = None,
    spec: Annotated[
        Path | None,
        typer.Option(help="Of host: machine file of codesign calibrate; host_cpu.yaml, measured if missing."),
    ] = None,
) -> None:
    """Compare every published measurement with its prediction, and say how far a price can be trusted.

    Rows are in accel_models/validation/TARGET.csv, or in mine.csv beside mine.yaml, whose errors --store keeps in
    mine.errors.json. Errors are |predicted / published - 1|, of percentages differences
    in points; whole networks and single layers apart. "Network left out" predicts the rows of each network with
    parameters fitted to the others. The interval is where 80 % of published values are expected, as factors of a
    prediction; the one of ratios is for two variants of a network on one machine, whose common error cancels.

    "host" is this machine: networks are compiled and run, and held against the CPU model with its measured numbers.

    Example: codesign validate eyeriss_v2 --refit --plot runs/validation
    """
    from codesign.validation import validate as run

    run(target or [], rows=rows, refit=refit, store=store, out=json_out, docs=docs, plot=plot, spec=spec)


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="Machine file to write (.yaml).")] = Path("host_cpu.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a machine file that is there.")] = False,
) -> None:
    """Measure this machine in seconds: a machine file that `simulate --target FILE.yaml` takes.

    Clock, multiplications a cycle and read bandwidth of every cache level, of one thread, with this project's own
    kernels. `codesign validate host` holds the CPU model with such a file against compiled networks.
    """
    from codesign.calibrate import calibrate as run

    run(out, overwrite)


@app.command("compile")
def compile_(
    model: Annotated[
        str,
        typer.Argument(help="Zoo name, my_file:my_net, module:function, or a finished run's folder."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the compiled network.", show_default=False)] = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    shape: Shape = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples a call; other batches are compiled when they come.")] = 1,
    threads: Threads = 1,
    isa: Annotated[str, typer.Option(help="avx512, avx2 or sse2; by default the best of this machine.")] = "",
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure tiles for every convolution instead of estimating.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print what was decided for every layer, as YAML.")
    ] = False,
) -> None:
    """Make native code of a network for this machine: zeros of its weights are not computed.

    Example: codesign compile runs/pruned --tune --out runs/native; codesign run runs/native --data cifar10
    """
    from codesign.native import compile_model

    compile_model(
        model, out, weights=weights, pretrained=pretrained, shape=shape, batch=batch, threads=threads, isa=isa,
        tune=tune, explain=explain,
    )  # fmt: skip


@app.command("run")
def run_(
    folder: Annotated[Path, typer.Argument(help="Folder of a codesign compile.")],
    data: Annotated[str | None, typer.Option(help="Measure accuracy on this data set's test images.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Only so many of them.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Hold every answer against the interpreter's.")] = False,
    given: Annotated[Path | None, typer.Option("--input", help="Answer for this array (.npy, float32).")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the answer goes; FILE.out.npy by default.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Instead of those it was compiled for.")] = None,
) -> None:
    """Run a compiled network: accuracy on test images, or answers for an array."""
    from codesign.native import run_model

    run_model(folder, data=data, images=images, check=check, given=given, out=out, threads=threads)


@app.command("bench")
def bench_(
    folder: Annotated[Path, typer.Argument(help="Folder of a codesign compile.")],
    repeats: Annotated[int, typer.Option(min=1, help="Calls.")] = 30,
    threads: Annotated[int | None, typer.Option(min=1, help="Instead of those it was compiled for.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Time every layer alone, too.")] = False,
) -> None:
    """Time a compiled network on this machine."""
    from codesign.native import bench

    bench(folder, repeats=repeats, threads=threads, layers=layers)


def _subject(model: str, weights: Path | None, pretrained: bool, shape: str | None, unknown: str) -> Subject:
    from codesign.subject import Subject

    return Subject.named(model, weights=weights, pretrained=pretrained, shape=shape, on_unknown=unknown)


def main() -> None:
    """Entry point: bad input is one line on stderr and exit code 2."""
    sys.path.append(os.getcwd())  # models and data of one's own: my_file:my_net
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        app(args=arguments, prog_name="codesign")
    except CodesignError as error:
        if debug:
            raise
        _fail(str(error))
    except OSError as error:
        if debug:
            raise
        _fail(str(ConfigError(f"{error.filename or 'file'}: {error.strerror or error}")))
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print("interrupted; run the same command again to resume", file=sys.stderr)
        raise


def _fail(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
