"""The main job: from a trained network, a machine and a budget to a smaller network, tested once, with a report.

    lower -> rank channels -> sensitivity (held-out training images) -> price table -> exact solver and NSGA-II
          -> accuracy of a few candidates of the front (held-out) -> pick -> fine-tune -> test accuracy, once -> report

Each phase is one file of the study's folder, so that a killed run resumes after its last finished phase (fine-tuning
resumes after its last epoch). Every number that is shown comes from these files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_models import SimulationResult, Target, target
from codesign.budgets import are_kept, parse_budgets, show
from codesign.config import SearchConfig, check, study_config
from codesign.costs import graph_costs
from codesign.records import Measured, Pick, SearchResult
from codesign.search import Front, search
from codesign.show import console
from codesign.solve import PriceTable, solve
from codesign.space import Space, channel_variables, price_table, weight_variables
from codesign.study import Study, numbers
from codesign.subject import classes_of, load_split, lowered, network
from reports.codec import fields_from_plain, fields_to_plain
from workloads.channels import analyze
from workloads.errors import ConfigError, PlanError
from workloads.graph import LayerGraph
from workloads.store import write_json

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

    from pruning.evaluation import Pictures
    from pruning.plan import PruningPlan
    from pruning.sensitivity import Sensitivity
    from workloads.data import ImageData
    from workloads.sparsity import WeightSparsity


LATER = {"front": ("budgets", "generations"), "pick": ("measured",), "finetune": ("epochs", "rate")}
"""By phase what it is the first to depend on: a budget that nothing keeps is raised without measuring anew."""


@dataclass(frozen=True)
class Outcome:
    """What a finished search gives.

    Attributes:
        plan, model: what was pruned, and the fine-tuned smaller network.
        dense, pruned: prices on the target. budgets: in SI units, by metric.
        met: every budget is kept by the simulated pruned graph.
        accuracies: dense and pruned, held out and test, fractions.
        folder, report: where everything lies.
    """

    plan: PruningPlan
    model: nn.Module
    dense: SimulationResult
    pruned: SimulationResult
    budgets: Mapping[str, float]
    met: bool
    accuracies: Mapping[str, float]
    folder: Path
    report: Path


def run(config: SearchConfig, folder: Path, *, device: str = "auto", overwrite: bool = False) -> Outcome:
    """Run or resume the whole job.

    Raises:
        CodesignError: bad names, data, weights, folder, or a budget that no candidate keeps.
    """
    check(config, device)
    heldout = load_split(config.model, config.data, "heldout")
    study = Study.create(folder, study_config(config), overwrite, LATER)
    return Job(config, study, device, console(), {"heldout": heldout}).run()


@dataclass(frozen=True)
class Job:
    """One run of a search: its parts are computed at first use and kept."""

    config: SearchConfig
    study: Study
    device: str
    screen: Console
    splits: dict[str, Pictures] = dataclasses.field(default_factory=dict)

    # ---- what it works on ------------------------------------------------------------------------------------------

    @cached_property
    def dense_model(self) -> nn.Module:
        weights = Path(self.config.weights) if self.config.weights else None
        return network(self.config.model, classes_of(self.config.data), weights, pretrained=weights is None)

    @cached_property
    def example(self) -> tuple[Tensor, ...]:
        from workloads.models import example_input

        return (example_input(self.config.model),)

    def images(self, split: str) -> ImageData:
        """A split with the model's preprocessing, read once."""
        from workloads.data import ImageData

        if split not in self.splits:
            self.splits[split] = load_split(self.config.model, self.config.data, split)
        images = self.splits[split]
        assert isinstance(images, ImageData)  # `config.check` refuses others
        return images

    @cached_property
    def heldout(self) -> ImageData:
        """The held-out training images that choices are made on."""
        whole = self.images("heldout")
        return whole.take(min(self.config.images, len(whole)))

    @cached_property
    def machine(self) -> Target:
        return target(self.config.target)

    def lowered(self, model: nn.Module) -> LayerGraph:
        """A model's graph in the machine's precision."""
        return self.machine.native(lowered(self.config.model, model, self.heldout, self.config.unknown))

    @cached_property
    def graph(self) -> LayerGraph:
        return self.lowered(self.dense_model)

    @cached_property
    def dense(self) -> SimulationResult:
        return self.machine.simulate(self.graph)

    @cached_property
    def dense_costs(self) -> dict[str, float]:
        """By metric, of the dense network."""
        return graph_costs(self.dense, self.graph)

    @cached_property
    def budgets(self) -> dict[str, float]:
        """In SI units."""
        return parse_budgets(self.config.budgets, self.dense_costs)

    @cached_property
    def space(self) -> Space:
        """What may be chosen, with the real mask of every weights option; groups that cannot be cut are left out."""
        from pruning.wiring import wire

        analysis = analyze(self.graph)
        multiple = self.config.multiple or self.machine.channel_multiple
        cuttable = set(wire(self.dense_model, analysis).prunable)
        offered = channel_variables(analysis, multiple, self.config.keep, self.config.options)
        channels = [variable for variable in offered if variable.of in cuttable]
        weights = weight_variables(self.graph, self.config.densities, self.config.granularity)
        space = Space(self.graph, analysis, (*channels, *(weights if self.config.densities else ())))
        if not space.variables:
            raise PlanError(
                f"nothing can be chosen: no channel group of {self.config.model} has several counts to offer"
            )
        return dataclasses.replace(space, masks=self._masks(space))

    def _masks(self, space: Space) -> dict[tuple[str, int], WeightSparsity]:
        from pruning.plan import magnitude_masks

        wanted = {
            (variable.of, i): (option.density, option.granularity)
            for variable in space.variables
            if variable.kind == "weights"
            for i, option in enumerate(variable.options)
            if i
        }
        return magnitude_masks(self.dense_model, self.graph, wanted) if wanted else {}

    @cached_property
    def prices(self) -> PriceTable:
        """Of every choice, as long as no loss is known."""
        return price_table(self.space, self.machine, {v.name: np.zeros(len(v.options)) for v in self.space.variables})

    @cached_property
    def ranking(self) -> dict[str, tuple[int, ...]]:
        """Units of each channel group, most important first, as the sensitivity phase measured them."""
        from pruning.sensitivity import Sensitivity

        return dict(self.study.stored("sensitivity", Sensitivity.from_dict).ranking)

    # ---- phases ----------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """All phases, each skipped if its file is there."""
        say = self.screen.print
        say(f"{self.config.model} on {self.machine.spec.title}: {_cost_line(self.dense)}")
        self._check_budgets()
        sensitivity = self._sensitivity()
        front = self._search(sensitivity)
        say(f"search: {front}")
        picked, plan = self._pick(front)
        say(f"pick: {picked.pick_heldout:.2%} on held-out images before fine-tuning "
            f"(dense {picked.dense_heldout:.2%})")  # fmt: skip
        say(str(plan))
        model, tuned = self._finetune(plan)
        tested = self._test(model)
        outcome = self._outcome(plan, model, picked, {**tuned, **tested})
        self._tell(outcome)
        return outcome

    def _check_budgets(self) -> None:
        """Refuse budgets that ask for nothing, and before anything is measured those that no choice keeps."""
        if all(self.dense_costs[name] <= budget for name, budget in self.budgets.items()):
            reached = ", ".join(f"{name} is {show(name, self.dense_costs[name])}" for name in self.budgets)
            raise PlanError(
                f"budget {', '.join(self.config.budgets)}: the dense network keeps it ({reached}), so there is nothing "
                "to prune; lower the budget"
            )
        if not self.study.has("front"):
            solve(self.prices, self.budgets)

    def _sensitivity(self) -> Sensitivity:
        from pruning.sensitivity import Sensitivity, measure

        counts: dict[str, tuple[int, ...]] = {}
        masks: dict[str, tuple[WeightSparsity, ...]] = {}
        for v in self.space.variables:
            if v.kind == "channels":
                counts[v.of] = tuple(option.count for option in v.options)
            else:
                masks[v.of] = tuple(self.space.masks[v.of, i] for i in range(1, len(v.options)))

        def compute() -> Sensitivity:
            return measure(
                self.dense_model, self.space.analysis, counts, self.heldout, masks=masks, device=self.device,
                adapt_norms=True,
            )  # fmt: skip

        return self.study.phase("sensitivity", compute, lambda found: found.to_dict(), Sensitivity.from_dict)

    def _search(self, sensitivity: Sensitivity) -> Front:
        def explore() -> Front:
            expected = sensitivity.monotone()
            table = dataclasses.replace(
                self.prices, loss=tuple(np.asarray(expected[name], float) for name in self.prices.names)
            )
            with _Progress(self.screen, "searching") as tick:
                return search(
                    table, self.budgets, generations=self.config.generations, seed=self.config.seed, progress=tick
                )

        return self.study.phase("front", explore, lambda found: found.to_dict(), Front.from_dict)

    def _pick(self, front: Front) -> tuple[Pick, PruningPlan]:
        """Measure candidates of the front that keep the budget on the real pruned graph; take the most accurate."""
        from pruning.plan import PruningPlan

        pick, path = (
            self.study.phase("pick", lambda: self._measure(front), fields_to_plain, _read_pick),
            self.study.path("plan"),
        )
        if not path.exists():
            self.plan(pick.choice).save(path)
        return pick, PruningPlan.load(path)

    @cached_property
    def picked(self) -> Pick:
        """The finished pick."""
        return self.study.stored("pick", _read_pick)

    @cached_property
    def result(self) -> SearchResult:
        """The finished search's numbers."""
        return self.study.loaded("result", lambda stored: fields_from_plain(SearchResult, stored, "result"))

    def _accuracy(self, model: nn.Module, images: ImageData) -> float:
        from pruning.evaluation import accuracy

        return accuracy(model, images, device=self.device)

    def _measure(self, front: Front) -> Pick:
        found: list[Measured] = []
        with _Progress(self.screen, "measuring candidates") as tick:
            for choice in self._candidates(front):
                model = self.smaller(self.plan(choice))
                graph = self.lowered(model)
                cost = graph_costs(self.machine.simulate(graph), graph)
                keeps = bool(are_kept(self.budgets, cost))
                found.append(Measured(tuple(int(i) for i in choice), cost, keeps, self._accuracy(model, self.heldout)))
                tick(len(found), self.config.measured)
                if sum(item.feasible for item in found) >= self.config.measured:
                    break
        usable = [item for item in found if item.feasible]
        if not usable:
            least = min(found, key=lambda item: item.costs[front.metric])
            raise PlanError(
                f"no candidate keeps the budget once its real masks are priced: {front.metric} reaches "
                f"{show(front.metric, least.costs[front.metric])}; raise the budget slightly"
            )
        best = max(usable, key=lambda item: item.heldout)
        dense = self._accuracy(self.dense_model, self.heldout)
        return Pick(dense, best.heldout, best.choice, self._table_cost(front, best.choice), tuple(found))

    def _table_cost(self, front: Front, choice: Sequence[int]) -> float:
        """What the search's price table said of a candidate, in the front's metric."""
        row = np.flatnonzero((front.choices == np.asarray(choice)).all(axis=1))[0]
        return float(front.costs[front.metric][row])

    def _candidates(self, front: Front) -> list[np.ndarray]:
        """Feasible candidates by expected loss, the exact solution first; no two alike."""
        order = np.flatnonzero(front.feasible)
        order = order[np.lexsort((front.costs[front.metric][order], front.loss[order]))]
        best = np.array(front.exact.choices)
        rest = [front.choices[i] for i in order if not np.array_equal(front.choices[i], best)]
        return [best, *rest[: 4 * self.config.measured]]

    def plan(self, choice: Sequence[int] | np.ndarray) -> PruningPlan:
        """A candidate as a plan: which channels stay, which weights."""
        from pruning.plan import make_plan

        counts: dict[str, int] = {}
        masks: dict[str, WeightSparsity] = {}
        for variable, i in zip(self.space.variables, choice, strict=True):
            if i and variable.kind == "channels":
                counts[variable.of] = variable.options[i].count
            elif i:
                masks[variable.of] = self.space.masks[variable.of, int(i)]
        return make_plan(self.config.model, self.space.analysis, counts, self.ranking, masks)

    def smaller(self, plan: PruningPlan) -> nn.Module:
        """The pruned network before fine-tuning, its batch norms measured anew on training images."""
        from pruning.evaluation import recalibrate

        model = plan.apply(self.dense_model, self.example)
        recalibrate(model, self.images("train"))
        return model

    def _finetune(self, plan: PruningPlan) -> tuple[nn.Module, dict[str, float]]:
        """The pruned network after fine-tuning, from its file if it is there."""
        from pruning.training import fit
        from workloads.models.weights import load_weights, save_weights

        is_done = self.study.has("finetune")
        model = plan.apply(self.dense_model, self.example) if is_done else self.smaller(plan)
        path = self.study.folder / "model.safetensors"

        def tune() -> dict[str, float]:
            if self.config.epochs:
                fit(
                    model, self.images("train"), self.config.epochs, self.config.rate, heldout=self.heldout,
                    teacher=self.dense_model, device=self.device, seed=self.config.seed,
                    checkpoint=self.study.folder / "training.pt",
                )  # fmt: skip
            save_weights(model, path)
            return {"tuned_heldout": self._accuracy(model, self.heldout)}

        tuned = self.study.phase("finetune", tune, load=numbers("tuned_heldout"))
        load_weights(model, path)
        return model, tuned

    def _test(self, model: nn.Module) -> dict[str, float]:
        """Test accuracy, measured once, here."""

        def test() -> dict[str, float]:
            images = self.images("test")
            return {"dense_test": self._accuracy(self.dense_model, images), "test": self._accuracy(model, images)}

        return self.study.phase("test", test, load=numbers("dense_test", "test"))

    def _outcome(self, plan: PruningPlan, model: nn.Module, picked: Pick, measured: Mapping[str, float]) -> Outcome:
        graph = self.lowered(model)
        pruned = self.machine.simulate(graph)
        costs = graph_costs(pruned, graph)
        met = bool(are_kept(self.budgets, costs))
        result = SearchResult(
            dense=self.dense,
            pruned=pruned,
            dense_costs=self.dense_costs,
            costs=costs,
            table_cost=picked.table_cost,
            budgets=self.budgets,
            met=met,
            dense_heldout=picked.dense_heldout,
            pick_heldout=picked.pick_heldout,
            **measured,
            parameters=(self.graph.parameters, graph.parameters),
            heldout_images=len(self.heldout),
            test_images=len(self.images("test")),
        )
        write_json(self.study.path("result"), fields_to_plain(result))
        self.report()
        return self.outcome(plan, model)

    def outcome(self, plan: PruningPlan, model: nn.Module) -> Outcome:
        """The finished search with what it made."""
        found, folder = self.result, self.study.folder
        return Outcome(
            plan, model, found.dense, found.pruned, found.budgets, found.met, found.accuracies, folder,
            folder / "report.html",
        )  # fmt: skip

    def report(self) -> Path:
        """Write the HTML report from the study's files."""
        from codesign.report import study_record
        from reports.html import write_report

        return write_report(self.study.folder, study_record(self))

    @cached_property
    def front(self) -> Front:
        """The finished search."""
        return self.study.stored("front", Front.from_dict)

    def _tell(self, outcome: Outcome) -> None:
        from codesign.report import what_binds
        from reports.comparison import describe_ratios

        say = self.screen.print
        dense, pruned, accuracies = outcome.dense, outcome.pruned, outcome.accuracies
        say(f"dense : {_cost_line(dense)}, test accuracy {accuracies['dense_test']:.2%}")
        say(f"pruned: {_cost_line(pruned)}, test accuracy {accuracies['test']:.2%}")
        ratio = pruned.latency_s / dense.latency_s
        say(f"latency {ratio:.3f}x of dense, energy {pruned.energy_j / dense.energy_j:.3f}x; "
            f"budget {', '.join(self.config.budgets)} {'kept' if outcome.met else 'NOT kept'}")  # fmt: skip
        say(describe_ratios(dense, pruned))
        say(what_binds(pruned))
        say(f"report: {outcome.report}")


def write_study_report(folder: Path) -> Path:
    """The HTML report of a finished study again, from its files.

    Raises:
        ConfigError: the folder holds no finished study.
    """
    return _finished(folder).report()


def _finished(folder: Path) -> Job:
    study = Study.open(folder)
    if (command := study.config.get("command", "search")) != "search":
        raise ConfigError(f"{folder / 'config.json'}: of codesign {command}, not of a search")
    if not study.has("result"):
        raise ConfigError(f"{folder}: the study is not finished; run the same search again to resume it")
    return Job(study.loaded("config", SearchConfig.from_dict), study, "cpu", console())


def load_outcome(folder: Path | str) -> Outcome:
    """A finished search, reloaded: the plan, the fine-tuned network and every number.

    The network of a `codesign prune` is loaded by `codesign.prune.load_pruned`.

    Raises:
        ConfigError: the folder holds no finished study.
    """
    from pruning.plan import PruningPlan

    job = _finished(Path(folder))
    plan = PruningPlan.load(job.study.path("plan"))
    model, _ = job._finetune(plan)
    return job.outcome(plan, model)


def _read_pick(stored: Any) -> Pick:
    return fields_from_plain(Pick, stored, "pick")


def _cost_line(result: SimulationResult) -> str:
    return f"{show('latency', result.latency_s)}, {show('energy', result.energy_j)}, {result.macs / 1e6:.2f} M MACs"


class _Progress:
    """A progress bar that is called with (done, total)."""

    def __init__(self, screen: Console, title: str) -> None:
        from rich.progress import Progress

        self._bar, self._title = Progress(console=screen, transient=True, disable=not screen.is_terminal), title

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        task = self._bar.add_task(self._title)
        return lambda done, total: self._bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
