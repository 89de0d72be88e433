import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lanterne import rng
from lanterne.data import Augmentation, Streams, augmentation
from lanterne.errors import DataError


def by_hand(image: np.ndarray, padding: int, flip: bool, variant: int) -> np.ndarray:
    """The definition, pixel by pixel."""
    flips, side = 1 + flip, 2 * padding + 1
    mirrored, rest = variant % flips, variant // flips
    left, up = ((k + padding) % side - padding for k in (rest % side, rest // side))
    _, height, width = image.shape
    out = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            row, column = i + up, (width - 1 - j if mirrored else j) + left
            if 0 <= row < height and 0 <= column < width:
                out[:, i, j] = image[:, row, column]
    return out


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(2, 6), st.integers(2, 6), st.integers(0, 3), st.booleans(), st.integers(0, 99))
def test_a_batch_is_the_definition(channels, height, width, padding, flip, seed):
    draw = np.random.default_rng(seed)
    augment = Augmentation(5, padding, flip)
    x, y = draw.normal(size=(5, channels, height, width)), draw.integers(0, 9, 5)
    numbers = draw.integers(0, 5 * augment.variants, (2, 3))
    found, labels = augment.read(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(numbers))
    assert found.shape == (2, 3, channels, height, width)
    assert np.array_equal(labels.numpy(), y[numbers % 5])
    for place in np.ndindex(2, 3):
        expected = by_hand(x[numbers[place] % 5], padding, flip, numbers[place] // 5)
        assert np.array_equal(found[place].numpy(), expected)


def test_all_variants_are_those_of_a_padded_crop_with_a_flip():
    image = torch.arange(1.0, 13).view(1, 1, 3, 4)
    augment = augmentation("crop-flip:1", (1, 3, 4), 1)
    found, _ = augment.read(image, torch.tensor([0]), torch.arange(augment.variants))
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0]
    crops = [padded[:, i : i + 3, j : j + 4] for i in range(3) for j in range(3)]
    expected = {tuple(each.flatten().tolist()) for crop in crops for each in (crop, crop.flip(2))}
    assert augment.variants == len(expected) == 18
    assert {tuple(each.flatten().tolist()) for each in found} == expected
    assert torch.equal(found[0], image[0])


def test_without_variants_numbers_are_rows():
    x, y = torch.randn(6, 2, 5, 5), torch.arange(6)
    for augment in (Augmentation(6), augmentation("crop-flip:2", (2, 5, 5), 6)):
        found, labels = augment.read(x, y, torch.tensor([[3, 0], [5, 5]]))
        assert torch.equal(found, x[torch.tensor([[3, 0], [5, 5]])])
        assert labels.tolist() == [[3, 0], [5, 5]]
    found, labels = augment.read(x, y, torch.empty(0, 4, dtype=torch.int64))
    assert (found.shape, labels.shape) == ((0, 4, 2, 5, 5), (0, 4))


def test_the_draw_is_uniform_over_variants_and_rows_stay_rows():
    augment = augmentation("crop-flip:1", (1, 4, 4), 7)
    numbers = augment.draw(np.tile(np.arange(7), 3000), np.random.default_rng(0))
    assert np.array_equal(numbers % 7, np.tile(np.arange(7), 3000))
    counts = np.bincount(numbers // 7, minlength=18)
    assert len(counts) == 18
    assert (np.abs(counts - 21000 / 18) < 5 * np.sqrt(21000 / 18)).all()


PARTITION = [np.arange(0, 7), np.array([9, 8, 7]), np.arange(10, 30)]


@settings(max_examples=40)
@given(st.integers(0, 2), st.integers(0, 12), st.integers(0, 5), st.integers(0, 99), st.integers(1, 9))
def test_a_step_reads_the_same_variants_whatever_span_it_is_read_in(client, first, length, seed, batch):
    augment = Augmentation(30, padding=2, flip=True)
    plain, streams = Streams(PARTITION, batch, seed), Streams(PARTITION, batch, seed, augment)
    span = range(first, first + length)
    numbers = streams.rows(client, span)
    assert np.array_equal(numbers % 30, plain.rows(client, span))  # the order of the rows does not change
    one_by_one = [Streams(PARTITION, batch, seed, augment).rows(client, range(s, s + 1)) for s in span]
    assert np.array_equal(numbers, np.concatenate([numbers[:0], *one_by_one]))


def test_each_epoch_draws_a_variant_of_each_row_from_its_own_key():
    augment = Augmentation(30, padding=2, flip=True)
    streams = Streams(PARTITION, batch=20, seed=5, augment=augment)
    for epoch in range(3):
        order = rng.generator(5, "batches", 2, epoch).permutation(PARTITION[2])
        variant = rng.generator(5, "augment", 2, epoch).integers(50, size=20)
        assert np.array_equal(streams.rows(2, range(epoch, epoch + 1))[0], order + 30 * variant)


@pytest.mark.parametrize(
    ("spec", "padding", "flip"), [("crop", 4, False), ("crop:2", 2, False), ("flip", 0, True), ("crop-flip:7", 7, True)]
)
def test_names(spec, padding, flip):
    assert augmentation(spec, (3, 8, 9), 10) == Augmentation(10, padding, flip)


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        ("crop-flp", (3, 8, 8), r"no augmentation 'crop-flp'.*Did you mean 'crop-flip'\?"),
        ("rotate", (3, 8, 8), "no augmentation 'rotate'.*Choose from: crop, crop-flip, flip"),
        ("crop", (60,), r"'crop' moves images, but a sample has shape \(60,\)"),
        (
            "crop-flip:8",
            (3, 9, 8),
            "'crop-flip:8' needs a shift in whole pixels, from 1 to 7 for images of 8x9.*'crop-f",
        ),
        ("crop:0", (3, 8, 8), "from 1 to 7"),
        ("crop:-1", (3, 8, 8), "from 1 to 7"),
        ("crop:1.5", (3, 8, 8), "from 1 to 7"),
        ("crop:", (3, 8, 8), "from 1 to 7"),
        ("crop", (3, 4, 4), "from 1 to 3 for images of 4x4; without a number it is 4. Write for instance 'crop:1'"),
        ("flip:2", (3, 8, 8), "a flip takes none. Write 'flip'"),
    ],
)
def test_bad_augmentations(spec, shape, message):
    with pytest.raises(DataError, match=message):
        augmentation(spec, shape, 10)
