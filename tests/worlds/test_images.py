"""Image files: what is read, what is refused, and that a data set is known by its content."""

import gzip

import numpy as np
import pytest
from image_files import RNG, SETS, folder, idx

from subl_jax.errors import InputError
from subl_jax.worlds import images


@pytest.mark.parametrize(
    "change",
    [
        lambda name, content: (name, content),
        lambda name, content: (f"{name}.gz", gzip.compress(content)),
        lambda name, content: (name.replace("-idx", ".idx"), content),
        lambda name, content: (f"emnist-digits-{name.replace('t10k', 'test')}.gz", gzip.compress(content)),
    ],
    ids=["plain", "gzip", "dots", "emnist"],
)
def test_four_files_are_a_data_set_however_they_are_named_and_packed(tmp_path, change):
    found = images.find(folder(tmp_path, change))
    assert (found.side, found.classes, found.train, found.test, found.peak) == (5, 10, 20, 10, 255.0)
    arrays = found.arrays()
    np.testing.assert_array_equal(arrays["train_images"], SETS["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(arrays["test_labels"], SETS["t10k-labels-idx1-ubyte"])


def test_a_data_set_is_its_content_wherever_it_lies(tmp_path):
    one, two = tmp_path / "one", tmp_path / "digits8x8"
    for place in (one, two):
        place.mkdir(parents=True)
    a, b = images.find(folder(one)), images.find(folder(two, lambda n, c: (f"{n}.gz", gzip.compress(c))))
    assert a == b and a.key == b.key and a.folder != b.folder and b.peak == 255
    np.testing.assert_array_equal(b.arrays()["train_images"], SETS["train-images-idx3-ubyte"])
    images._read_folder.cache_clear()
    (two / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(10, np.uint8))))
    with pytest.raises(InputError, match="have changed since the sweep was planned"):
        b.arrays()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG\r\n", "not an IDX file of bytes .it starts with 89504e47"),
        (idx(SETS["t10k-images-idx3-ubyte"])[:-3], "do not hold an array of .10, 5, 5.: truncated"),
        (idx(SETS["t10k-images-idx3-ubyte"]) + b"x", "do not hold an array"),
        (idx(SETS["t10k-images-idx3-ubyte"])[:10], "truncated"),
        (gzip.compress(idx(SETS["t10k-images-idx3-ubyte"]))[:-20], "cannot be read, or is truncated"),
        (idx(RNG.integers(0, 9, (10, 5, 4), np.uint8)), "test images of shape .10, 5, 4."),
        (idx(RNG.integers(0, 9, (9, 5, 5), np.uint8)), "labels of shape .10,."),
        (idx(RNG.integers(0, 9, (10, 6, 6), np.uint8)), "differ in size"),
        (idx(np.zeros((0, 5, 5), np.uint8)), "test images of shape .0, 5, 5."),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, content, message):
    place = folder(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        images.find(place)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        images.find(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in it"):
        images.find(str(tmp_path))
    place = folder(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="no t10k-labels-idx1-ubyte"):
        images.find(place)
    for other in ("digits", "letters"):
        (tmp_path / f"emnist-{other}-test-labels-idx1-ubyte").write_bytes(idx(SETS["t10k-labels-idx1-ubyte"]))
    with pytest.raises(InputError, match="several data sets .emnist-digits-test-labels-idx1-ubyte, emnist-letters"):
        images.find(place)
    with pytest.raises(InputError, match="give its folder"):
        images.find("", "cifar")


def test_a_relative_folder_is_named_by_where_it_is(tmp_path, monkeypatch):
    place = folder(tmp_path)
    monkeypatch.chdir(place)
    found = images.find(".")
    assert found.name == tmp_path.name and found.peak == 255 and found.arrays()["test_labels"].shape == (10,)


def test_the_embedded_digits_are_there_without_a_file():
    found = images.find()
    arrays = found.arrays()
    assert arrays["train_images"].shape == (1400, 8, 8) and arrays["test_images"].shape == (397, 8, 8)
    assert arrays["train_images"].max() == found.peak == 16
    # Both parts hold every class about equally often.
    for part in ("train_labels", "test_labels"):
        shares = np.bincount(arrays[part], minlength=10) / len(arrays[part])
        assert shares.min() > 0.07 and shares.max() < 0.13


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    import pooch

    def refuse(*arguments, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(InputError, match="MNIST could not be fetched .no route.; give a folder"):
        images.find("", "mnist")


def test_what_is_fetched_must_be_mnist(tmp_path, monkeypatch):
    import pooch

    monkeypatch.setenv("SUBL_JAX_CACHE", str(tmp_path))
    (tmp_path / "mnist").mkdir()

    def retrieve(url, known_hash, fname, path):
        (path / fname).write_bytes(gzip.compress(idx(SETS[fname.removesuffix(".gz")])))

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(InputError, match="not MNIST .checksum differs."):
        images.find("", "mnist")


def test_letters_that_are_labelled_from_1_are_26_classes(tmp_path):
    def letters(name, content):
        labels = np.arange(1, 27, dtype=np.uint8)
        shown = labels if "labels" in name else np.zeros((26, 5, 5), np.uint8)
        return f"emnist-letters-{name.replace('t10k', 'test')}", idx(shown)

    found = images.find(folder(tmp_path, letters))
    assert found.classes == 26
    np.testing.assert_array_equal(found.arrays()["test_labels"], np.arange(26))
