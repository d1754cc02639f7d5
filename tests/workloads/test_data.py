"""Data sets: the contract of each, fixed splits, batches, and files that are missing, cut, altered or fetched."""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import re
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workloads import data
from workloads.data import cifar10, imagenet_samples, mnist, store
from workloads.data.images import Augmentation, ImageData, Preprocessing
from workloads.data.sets import DataSet, stratified_order
from workloads.data.store import DataFile
from workloads.errors import CodesignError, ConfigError, DataError, ShapeError

FOLDERS = {"cifar10": "cifar-10-batches-bin", "mnist": "MNIST/raw", "imagenet_samples": "imagenet_samples"}
SPLITS = {  # name, split: pictures, first 16 hex digits of the SHA-256 of their positions (int64)
    ("cifar10", "train"): (45000, "0dcbccc6b64fd46f"),
    ("cifar10", "heldout"): (5000, "75922c244f30e959"),
    ("cifar10", "test"): (10000, "9e1c19b3fdc18541"),
    ("digits", "train"): (1237, "435d7bb58828538a"),
    ("digits", "heldout"): (200, "db5b2e5b18d921bf"),
    ("digits", "test"): (360, "c5b5d89abc3aae5b"),
    ("imagenet_samples", "test"): (1000, "702746827e553786"),
    ("mnist", "train"): (55000, "e6ac3cc7ecc4fc75"),
    ("mnist", "heldout"): (5000, "b7f9cd4b59e60ab8"),
    ("mnist", "test"): (10000, "9e1c19b3fdc18541"),
}


needs_sklearn = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="digits come with scikit-learn: pip install codesign[demo]"
)


def real(name: str) -> object:
    """A parameter that is skipped where the files of that data set are not at hand."""
    marks = {"digits": needs_sklearn, **{known: pytest.mark.data(folder) for known, folder in FOLDERS.items()}}
    return pytest.param(name, marks=[marks[name]] if name in marks else [])


@pytest.fixture
def pictures() -> ImageData:
    """Ten pictures of 2 x 4 x 6, three classes."""
    rng = np.random.default_rng(0)
    return ImageData(
        name="noise",
        split="train",
        images=rng.integers(0, 256, (10, 2, 4, 6), dtype=np.uint8),
        labels=np.arange(10) % 3,
        indices=np.arange(10),
        num_classes=3,
        preprocessing=Preprocessing(mean=(0.5, 0.25), std=(0.5, 0.25)),
        augmentation=Augmentation(crop_padding=2, flip=True),
    )


class TestEveryDataSet:
    """The contract, over the whole registry."""

    @pytest.mark.parametrize("name", [real(name) for name in data.data_sets()])
    def test_arrays_splits_and_normalisation(self, name):
        data_set = data.data_sets()[name]
        for split in data_set.splits:
            loaded = data.load(name, split)
            assert loaded.images.dtype == np.uint8
            assert loaded.images.shape == (len(loaded), *data_set.image_shape)
            assert loaded.labels.dtype == loaded.indices.dtype == np.int64
            assert set(np.unique(loaded.labels)) == set(range(data_set.num_classes))
            assert not loaded.images.flags.writeable
            assert not loaded.labels.flags.writeable
            assert len(data_set.classes) in (0, data_set.num_classes)
            x = loaded.tensor(slice(0, 1000))
            assert x.dtype == torch.float32
            assert x.mean(dim=(0, 2, 3)).abs().max() < 0.25
            assert (x.std(dim=(0, 2, 3)) - 1).abs().max() < 0.25

    @pytest.mark.parametrize("name", [real(name) for name in data.data_sets()])
    def test_splits_are_disjoint_whole_and_fixed(self, name):
        positions = {split: data.load(name, split).indices for split in data.data_sets()[name].splits}
        for split, indices in positions.items():
            digest = hashlib.sha256(indices.tobytes()).hexdigest()[:16]
            assert (len(indices), digest) == SPLITS.get((name, split), (len(indices), digest))
        if "heldout" in positions:
            both = np.concatenate([positions["train"], positions["heldout"]])
            assert np.array_equal(np.sort(both), np.arange(len(both)))

    def test_every_built_in_split_is_pinned(self):
        assert set(SPLITS) == {(name, split) for name, s in data.data_sets().items() for split in s.splits}


@needs_sklearn
def test_no_digit_is_in_two_splits():
    bytes_of = {
        split: {image.tobytes() for image in data.load("digits", split).images}
        for split in data.data_sets()["digits"].splits
    }
    assert sum(map(len, bytes_of.values())) == len(set.union(*bytes_of.values())) == 1797


@pytest.mark.data("cifar-10-batches-bin")
def test_the_first_cifar_pictures_are_the_published_ones():
    first = data.load("cifar10", "test", limit=4)
    assert [first.classes[label] for label in first.labels] == ["cat", "ship", "ship", "airplane"]
    assert first.images[0, :, 0, 0].tolist() == [158, 112, 49]


def test_listing_imports_neither_torch_nor_sklearn():
    code = (
        "import sys, workloads.data as d; d.data_sets(); print({'torch', 'sklearn', 'scipy', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=st.integers(0, 99))
def test_every_prefix_of_the_stratified_order_is_balanced(labels, seed):
    labels = np.array(labels)
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    classes = np.unique(labels)
    for label in classes:
        share = np.mean(labels == label)
        off = np.cumsum(labels[order] == label) - share * np.arange(1, len(labels) + 1)
        assert np.abs(off).max() <= 0.5 + share * len(classes) / 2 + 1e-9
    assert np.array_equal(order, stratified_order(labels, seed))


@needs_sklearn
def test_held_out_digits_are_balanced_whatever_their_number():
    for count in (20, 50, 100):
        per_class = np.bincount(data.load("digits", "heldout", limit=count).labels, minlength=10)
        assert per_class.max() - per_class.min() <= 1


class TestPreprocessing:
    def test_formula(self):
        pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 2, 1, 1)
        y = Preprocessing(mean=(0.5, 0.0), std=(0.5, 0.1)).apply(pixels)
        torch.testing.assert_close(y[:, :, 0, 0], torch.tensor([[-1.0, 0.0], [-0.6, 2.0], [1.0, 10.0]]))

    def test_half_turn(self):
        pixels = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3)
        y = Preprocessing(mean=(0.0,), std=(1 / 255,), half_turn=True).apply(pixels)
        torch.testing.assert_close(y[0, 0], torch.tensor([[5.0, 4, 3], [2, 1, 0]]))

    def test_input_is_not_modified(self, pictures):
        before = pictures.images.copy()
        pictures.tensor().zero_()
        assert np.array_equal(before, pictures.images)

    @pytest.mark.parametrize(("mean", "std"), [((), ()), ((0.5,), (0.5, 0.5)), ((0.5,), (0.0,))])
    def test_impossible_numbers(self, mean, std):
        with pytest.raises(ConfigError, match="need one number a channel, std > 0"):
            Preprocessing(mean, std)

    def test_wrong_channels(self, pictures):
        with pytest.raises(ShapeError, match=r"shape \(10, 2, 4, 6\) given, .* needs \(n, 1, h, w\)"):
            Preprocessing((0.5,), (0.5,)).apply(torch.tensor(pictures.images))
        with pytest.raises(ShapeError, match=r"noise: images have 2 channels, mean and std of preprocessing for 1"):
            dataclasses.replace(pictures, preprocessing=Preprocessing((0.5,), (0.5,)))


class TestAugmentation:
    def test_nothing_asked_nothing_done(self, pictures):
        x = torch.tensor(pictures.images)
        assert torch.equal(Augmentation().apply(x, torch.Generator()), x)

    def test_every_result_is_a_window_of_the_padded_picture_or_of_its_mirror(self):
        x = torch.randint(1, 256, (60, 2, 4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        y = Augmentation(crop_padding=1, flip=True).apply(x, torch.Generator().manual_seed(1))
        padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
        seen = set()
        for picture, wide in zip(y, padded, strict=True):
            windows = {(i, j, 0): wide[:, i : i + 4, j : j + 6] for i in range(3) for j in range(3)}
            windows |= {(i, j, 1): window.flip(-1) for (i, j, _), window in windows.items()}
            hits = [key for key, window in windows.items() if torch.equal(window, picture)]
            assert len(hits) == 1
            seen.update(hits)
        assert len(seen) > 14  # of 18 equally likely ones; 60 draws miss 0.6 of them on average

    def test_same_generator_same_pictures(self, pictures):
        x = torch.tensor(pictures.images)
        a, b, c = (pictures.augmentation.apply(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


class TestImageData:
    @pytest.mark.parametrize("seed", [None, 3])
    def test_batches_hold_every_picture_once(self, pictures, seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        batches = list(pictures.batches(4, generator))
        assert [len(y) for _, y in batches] == [4, 4, 2]
        x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
        rows = [int((pictures.tensor() == picture).all(dim=(1, 2, 3)).nonzero()) for picture in x]
        assert sorted(rows) == list(range(10))
        assert (rows == list(range(10))) == (seed is None)
        assert torch.equal(y, pictures.targets(rows))

    def test_augmented_batches_are_repeatable(self, pictures):
        first, again, plain = (
            torch.cat([x for x, _ in pictures.batches(4, torch.Generator().manual_seed(5), augment)])
            for augment in (True, True, False)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, plain)

    def test_a_torch_loader_can_read_it(self, pictures):
        x, y = next(iter(torch.utils.data.DataLoader(pictures, batch_size=10)))
        assert torch.equal(x, pictures.tensor())
        assert y.tolist() == pictures.labels.tolist()
        assert len(list(pictures)) == 10

    def test_take_and_repr(self, pictures):
        assert np.array_equal(pictures.take(3).images, pictures.images[:3])
        assert repr(pictures.take(3)) == "ImageData('noise', 'train', 3 pictures of (2, 4, 6))"
        assert (pictures.mean, pictures.std) == ((0.5, 0.25), (0.5, 0.25))

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda d: next(d.batches(0)), "batch_size 0 given, needs at least 1"),
            (lambda d: next(d.batches(2, augment=True)), "augment=True needs a generator"),
            (lambda d: d.take(11), "11 pictures asked of noise train, which has 1 to 10"),
            (lambda d: d.take(0), "0 pictures asked of noise train, which has 1 to 10"),
        ],
    )
    def test_bad_arguments(self, pictures, call, message):
        with pytest.raises(ConfigError, match=message):
            call(pictures)

    def test_arrays_that_do_not_belong_together(self, pictures):
        with pytest.raises(ShapeError, match=r"noise: images, labels, indices of shapes \(3, 2, 4, 6\), \(2,\)"):
            ImageData("noise", "test", np.zeros((3, 2, 4, 6), np.uint8), *[np.zeros(2)] * 2, 3, pictures.preprocessing)


class TestLoad:
    @pytest.mark.parametrize(
        ("name", "split", "limit", "message"),
        [
            ("cifar-10", "test", None, "unknown data set 'cifar-10'; did you mean 'cifar10'. Known: cifar10, digits"),
            ("digits", "validation", None, "unknown split of digits 'validation'; Known: heldout, test, train"),
            ("imagenet_samples", "train", None, "unknown split of imagenet_samples 'train'; Known: test"),
            pytest.param("digits", "test", 361, "361 pictures asked of .* has 1 to 360", marks=needs_sklearn),
        ],
    )
    def test_bad_arguments(self, name, split, limit, message):
        with pytest.raises(ConfigError, match=message):
            data.load(name, split, limit=limit)

    @needs_sklearn
    def test_preprocessing_of_the_model_replaces_that_of_the_data(self):
        own = Preprocessing(mean=(0.0,), std=(1 / 255,))
        digits = data.load("digits", "test", preprocessing=own)
        torch.testing.assert_close(digits.tensor([0])[0], torch.tensor(digits.images[0]).float())

    def test_missing_scikit_learn_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(DataError, match=r"comes with scikit-learn: pip install codesign\[demo\]"):
            data.load("digits", "test")

    @pytest.mark.parametrize("name", sorted(FOLDERS))
    def test_an_empty_data_folder(self, tmp_path, monkeypatch, name):
        monkeypatch.setenv("CODESIGN_DATA", str(tmp_path))
        with pytest.raises(DataError, match=rf"{name}: {tmp_path}/\S+ does not exist .the folder is empty."):
            data.load(name, "test")

    def test_a_data_folder_that_is_none(self, tmp_path, monkeypatch):
        monkeypatch.setenv("CODESIGN_DATA", str(tmp_path / "absent"))
        with pytest.raises(DataError, match=r"CODESIGN_DATA=\S+absent is not a folder"):
            data.load("mnist", "test")

    def test_what_cannot_be_downloaded_says_so(self, tmp_path, monkeypatch):
        use_cache(monkeypatch, tmp_path)
        with pytest.raises(DataError, match="imagenet_samples cannot be downloaded; set CODESIGN_DATA to a folder"):
            data.load("imagenet_samples", "test")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda raw: raw[:-1], r"test_batch.bin: 30,729,999 of 30,730,000 bytes, so it is truncated"),
            (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), r"test_batch.bin: SHA-256 differs from the published file"),
        ],
    )
    @pytest.mark.data("cifar-10-batches-bin")
    def test_a_damaged_file(self, data_dir, tmp_path, change, message):
        target = tmp_path / cifar10.FOLDER / "test_batch.bin"
        target.parent.mkdir()
        target.write_bytes(change((data_dir / cifar10.FOLDER / "test_batch.bin").read_bytes()))
        with pytest.raises(DataError, match=message):
            data.load("cifar10", "test", root=tmp_path)

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (np.zeros((4, 1, 2, 2), np.float32), np.zeros(4, np.int64), r"tiny: read float32 \(4, 1, 2, 2\)"),
            (np.zeros((4, 1, 2, 3), np.uint8), np.zeros(4, np.int64), r"needs uint8 pictures of \(1, 2, 2\)"),
            (np.zeros((4, 1, 2, 2), np.uint8), np.zeros(3, np.int64), r"labels \(3,\)"),
            (
                np.zeros((4, 1, 2, 2), np.uint8),
                np.full(4, 2),
                "tiny: labels must be int64 from 0 to 1, its train part has 2 at 0",
            ),
            (
                np.zeros((4, 1, 2, 2), np.uint8),
                np.zeros(4),
                "tiny: labels must be int64 from 0 to 1, its train part has float64",
            ),
            (
                np.zeros((1, 1, 2, 2), np.uint8),
                np.zeros(1, np.int64),
                "tiny: 1 training pictures, but 1 are to be held",
            ),
        ],
    )
    def test_a_reader_that_breaks_its_promise(self, images, labels, message):
        with pytest.raises(DataError, match=message):
            data.load(tiny_set((), lambda root, part: (images, labels)), "train")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("image_shape", (4, 32), "must be (channels, height, width)"),
        ("image_shape", (1, 2, -2), "must be (channels, height, width)"),
        ("image_shape", [1, 2, 2], "must be (channels, height, width)"),
        ("num_classes", "3", "must be a whole number of at least 1"),
        ("num_classes", 0, "must be a whole number of at least 1"),
        ("preprocessing", None, "must be a Preprocessing"),
        ("preprocessing", Preprocessing((0.5,) * 2, (0.5,) * 2), "mean and std must have 1 numbers, one a channel"),
        ("read", None, "must be a function"),
        ("files", None, "must have a key 'test'"),
        ("files", {"train": ()}, "must have a key 'test'"),
        ("files", {"test": (), "heldout": ()}, "must have a key 'test'"),
        ("heldout", 0, "must be a whole number of at least 1: choices are made on pictures held out"),
        ("heldout", -5, "must be a whole number of at least 1"),
        ("heldout", 0.2, "must be a whole number of at least 1"),
    ],
)
def test_wrong_fields_of_a_data_set_are_named(field, value, allowed):
    with pytest.raises(ConfigError, match=re.escape(f"data set 'tiny': {field} {value!r}, {allowed}")):
        dataclasses.replace(tiny_set((), read_tiny), **{field: value})
    assert dataclasses.replace(tiny_set((), read_tiny), files={"test": ()}, heldout=0).splits == ("test",)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1, 2], "reading train must answer two NumPy arrays"),
        (None, "reading train must answer two NumPy arrays"),
        (np.zeros(3), "reading train must answer two NumPy arrays"),
        ((np.zeros((0, 1, 2, 2), np.uint8), np.zeros(0, np.int64)), "its train part has no picture"),
        (ValueError("torn"), "reading train raised ValueError: torn"),
        (SystemExit(0), "reading train raised SystemExit: 0"),
    ],
)
def test_what_a_reader_answers_is_checked(answer, message):
    def read(root, part):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    with pytest.raises(DataError, match=f"^tiny: {message}"):
        data.load(tiny_set((), read), "train")


def test_few_test_pictures_are_enough():
    many, few = (np.zeros((n, 1, 2, 2), np.uint8) for n in (4, 1))
    labels = np.array([0, 1, 0, 1])
    found = tiny_set((), lambda root, part: (many, labels) if part == "train" else (few, labels[:1]))
    assert len(data.load(found, "test")) == 1
    with pytest.raises(DataError, match="tiny: 1 training pictures, but 1 are to be held out"):
        data.load(tiny_set((), lambda root, part: (few, labels[:1])), "train")


class TestEntryPoints:
    def test_a_package_elsewhere_adds_a_data_set(self, monkeypatch):
        self._install(monkeypatch, "tests_tiny_data:DATA_SET", DATA_SET=tiny_set((), read_tiny))
        assert "tiny" in data.data_sets()
        assert len(data.load("tiny", "heldout")) == 1

    @pytest.mark.parametrize(
        ("value", "content", "message"),
        [
            ("tests_tiny_data:DATA_SET", {}, "entry point 'tiny' of codesign.data: tests_tiny_data:DATA_SET fails"),
            ("no_such_module_here:X", {}, "entry point 'tiny' of codesign.data: no_such_module_here:X fails"),
            ("tests_tiny_data:DATA_SET", {"DATA_SET": 3}, "tests_tiny_data:DATA_SET is not a DataSet"),
            ("tests_tiny_data:DATA_SET", {"DATA_SET": mnist.DATA_SET}, "two data sets are registered as 'mnist'"),
        ],
    )
    def test_bad_entry_points(self, monkeypatch, value, content, message):
        self._install(monkeypatch, value, **content)
        with pytest.raises(ConfigError, match=message):
            data.data_sets()

    def test_a_file_of_ones_own(self, monkeypatch):
        self._install(monkeypatch, "", MY_SET=tiny_set((), read_tiny), NUMBER=3)
        assert data.find("tests_tiny_data:MY_SET").name == "tiny"
        assert len(data.load("tests_tiny_data:MY_SET", "heldout")) == 1
        for name, message in (
            ("tests_tiny_data:NUMBER", "tests_tiny_data:NUMBER is not a DataSet"),
            ("tests_tiny_data:THEIRS", "tests_tiny_data:THEIRS fails"),
            ("no_such_module_here:X", "no_such_module_here:X fails"),
            ("no_such_module_here:", "no_such_module_here: "),
        ):
            with pytest.raises(ConfigError, match=f"^{message}"):
                data.load(name, "test")

    @pytest.fixture(autouse=True)
    def _fresh_registry(self):
        data.data_sets.cache_clear()
        yield
        data.data_sets.cache_clear()

    @staticmethod
    def _install(monkeypatch, value, **content):
        module = type(sys)("tests_tiny_data")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, "tests_tiny_data", module)
        point = importlib.metadata.EntryPoint("tiny", value, data.ENTRY_POINTS)
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] * (group == point.group))


class TestFormats:
    def test_idx_round_trip(self, tmp_path):
        header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (2, 3, 4))
        (tmp_path / "x.gz").write_bytes(gzip.compress(header + bytes(range(24))))
        assert np.array_equal(mnist.read_idx(tmp_path / "x.gz"), np.arange(24).reshape(2, 3, 4))

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (b"no gzip", "x.gz: not a whole gzip file"),
            (gzip.compress(b"\0\0\x08\x01\0\0\0\x01a", mtime=0)[:-5], "x.gz: not a whole gzip file"),
            (gzip.compress(b"", mtime=0), "x.gz: not an idx file of bytes .it begins with nothing."),
            (gzip.compress(b"\0\0\x0d\x01\0\0\0\x01a", mtime=0), "x.gz: not an idx file of bytes"),
            (gzip.compress(b"\0\0\x08\x03\0\0", mtime=0), "x.gz: not an idx file of bytes"),
            (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc", mtime=0), r"x.gz: header says \(5,\), .* not the 3 bytes"),
        ],
    )
    def test_bad_idx(self, tmp_path, raw, message):
        (tmp_path / "x.gz").write_bytes(raw)
        with pytest.raises(DataError, match=message):
            mnist.read_idx(tmp_path / "x.gz")

    @pytest.mark.parametrize("size", [0, 1, 3072, 3074])
    def test_bad_cifar_records(self, tmp_path, size):
        (tmp_path / "x.bin").write_bytes(bytes(size))
        with pytest.raises(DataError, match=r"x.bin: .* no whole number of records of 3,073"):
            cifar10.read_records(tmp_path / "x.bin")

    def test_bad_sample_pictures(self, tmp_path):
        path = tmp_path / imagenet_samples.ARCHIVE
        path.parent.mkdir()
        with pytest.raises(DataError, match=r"not the archive of sample pictures .*No such file"):
            imagenet_samples.read(tmp_path, "test")
        path.write_bytes(b"no zip")
        with pytest.raises(DataError, match="not the archive of sample pictures"):
            imagenet_samples.read(tmp_path, "test")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("0000_n1.jpg", b"no picture")
        with pytest.raises(DataError, match="not the archive of sample pictures"):
            imagenet_samples.read(tmp_path, "test")


def read_tiny(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((4, 1, 2, 2), np.uint8), np.array([0, 1, 0, 1])


def tiny_set(files: tuple[DataFile, ...], read=read_tiny) -> DataSet:
    return DataSet(
        "tiny", "four", (1, 2, 2), 2, Preprocessing((0.0,), (1.0,)), read, {"train": files, "test": files}, 1
    )


def published(path: str, content: bytes, url: str, archive: bytes = b"") -> DataFile:
    md5 = hashlib.md5(archive).hexdigest() if archive else ""
    return DataFile(path, len(content), hashlib.sha256(content).hexdigest(), url, md5)


def tar_of(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def use_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    monkeypatch.delenv("CODESIGN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "codesign"


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestStore:
    """Downloads come from file:// addresses, which go through the same opener as http."""

    def test_a_plain_file_is_fetched_once(self, tmp_path, monkeypatch):
        cache, source = use_cache(monkeypatch, tmp_path / "cache"), tmp_path / "source"
        source.write_bytes(b"content")
        tiny = tiny_set((published("sub/file", b"content", source.as_uri()),))
        assert len(data.load(tiny, "train")) == 3
        assert everything_below(cache) == ["sub/file"]
        source.unlink()
        assert len(data.load(tiny, "train")) == 3

    def test_all_members_of_an_archive_are_unpacked_when_one_is_needed(self, tmp_path, monkeypatch):
        cache, source = use_cache(monkeypatch, tmp_path / "cache"), tmp_path / "source.tar.gz"
        source.write_bytes(tar_of(d__a=b"aa", d__b=b"bbb", other=b"x", **{"..__evil": b"x"}))
        a, b = (
            published(f"d/{c}", c.encode() * n, source.as_uri(), source.read_bytes()) for c, n in (("a", 2), ("b", 3))
        )
        assert store.locate("tiny", [b], [a, b]) == cache
        assert everything_below(tmp_path) == ["cache/codesign/d/a", "cache/codesign/d/b", "source.tar.gz"]
        assert (cache / "d/b").read_bytes() == b"bbb"

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ("checksum", r"source: file: SHA-256 differs from the published file"),
            ("size", r"source: file: 7 of 8 bytes, so it is truncated"),
            ("archive", r"source: MD5 differs from the published archive"),
            ("member", r"source: the archive has no file file"),
            ("folder", r"source: the archive has no file d"),
            ("long member", r"source: file: 8 of 7 bytes"),
            ("no archive", r"source could not be stored below .*; fetch it by other means"),
            ("cut archive", r"source could not be stored below .*; fetch it by other means"),
            ("no source", r"source could not be stored below .*No such file"),
        ],
    )
    def test_a_failed_download_is_one_line_and_leaves_nothing(self, tmp_path, monkeypatch, wrong, message):
        cache, source = use_cache(monkeypatch, tmp_path / "cache"), tmp_path / "source"
        raw = {
            "checksum": b"CONTENT",
            "size": b"content",
            "member": tar_of(other=b"content"),
            "folder": tar_of(d__x=b"content"),
            "long member": tar_of(file=b"content" * 9),
            "no archive": b"content",
            "cut archive": tar_of(file=bytes(100000))[:60],
            "archive": b"content",
            "no source": b"",
        }[wrong]
        source.write_bytes(raw)
        inside = wrong in {"member", "folder", "long member", "no archive", "cut archive", "archive"}
        content = b"content!" if wrong == "size" else b"content"
        name = "d" if wrong == "folder" else "file"
        file = published(name, content, source.as_uri(), (raw + b"!" * (wrong == "archive")) if inside else b"")
        if wrong == "no source":
            source.unlink()
        with pytest.raises(DataError, match=message) as caught:
            data.load(tiny_set((file,)), "train")
        assert "\n" not in str(caught.value)
        assert everything_below(cache) == []

    def test_a_cut_connection_leaves_nothing(self, tmp_path, monkeypatch):
        cache = use_cache(monkeypatch, tmp_path)

        class Cut(io.BytesIO):
            headers = {"Content-Length": "99"}  # noqa: RUF012

            def read(self, size: int = -1) -> bytes:
                raise ConnectionResetError("connection reset by peer")

        monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Cut())
        with pytest.raises(
            DataError, match=r"https://x.org/file could not be stored .*reset by peer.*set CODESIGN_DATA"
        ):
            data.load(tiny_set((published("file", b"content", "https://x.org/file"),)), "train")
        assert everything_below(cache) == []

    def test_a_cache_that_cannot_be_written(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_bytes(b"in the way")
        use_cache(monkeypatch, tmp_path / "file")
        with pytest.raises(DataError, match=r"could not be stored below .*Not a directory"):
            data.load(tiny_set((published("file", b"content", (tmp_path / "file").as_uri()),)), "train")

    def test_a_given_folder_is_never_written_to(self, tmp_path, monkeypatch):
        source, folder = tmp_path / "source", tmp_path / "data"
        source.write_bytes(b"content")
        folder.mkdir()
        tiny = tiny_set((published("file", b"content", source.as_uri()),))
        monkeypatch.setenv("CODESIGN_DATA", str(folder))
        with pytest.raises(
            DataError, match=r"tiny: .*file does not exist .the folder is empty.; put it there, or let it"
        ):
            data.load(tiny, "train")
        monkeypatch.delenv("CODESIGN_DATA")
        with pytest.raises(DataError, match=r"tiny: .*file does not exist"):
            data.load(tiny, "train", root=folder)
        assert everything_below(folder) == []

    def test_a_file_that_changes_after_its_check_is_checked_again(self, tmp_path):
        file = published("file", b"content", "")
        (tmp_path / "file").write_bytes(b"content")
        data.load(tiny_set((file,)), "train", root=tmp_path)
        (tmp_path / "file").write_bytes(b"CONTENT")
        with pytest.raises(CodesignError, match="SHA-256 differs"):
            data.load(tiny_set((file,)), "train", root=tmp_path)

    def test_the_cache_folder_follows_the_environment(self, tmp_path, monkeypatch):
        assert use_cache(monkeypatch, tmp_path) == store.data_root() == tmp_path / "codesign"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert store.data_root() == tmp_path / "home" / ".cache" / "codesign"
        monkeypatch.setenv("CODESIGN_DATA", str(tmp_path))
        assert store.data_root() == tmp_path
