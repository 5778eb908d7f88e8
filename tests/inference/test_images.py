"""Images as a field: from memory and from every kind of file alike, scaled and resized, and what is none by name."""

import warnings
import zipfile
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import tifffile
import torch
import zarr

import fieldguide.inference as fi
from fieldguide.catalog import entry
from fieldguide.inference.data import image_stacks
from fieldguide.inference.data.image_stacks import divided, open_stack

SHAPE = (11, 2, 6, 6)


def some(dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=SHAPE).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, SHAPE, dtype=dtype, endpoint=True)


def learnt(data: Any, place: str = "image", **given: Any) -> tuple[Any, torch.Tensor]:
    schema = fi.Schema(image=fi.Images(**{"place": place, **given})).learn(data)
    store = schema.read(data)["image"]
    return schema, store.gather(np.arange(store.shape[0]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_whole_numbers_are_divided_by_full_intensity(dtype):
    images = some(dtype)
    schema, pixels = learnt({"image": images})
    np.testing.assert_allclose(pixels, images / np.iinfo(dtype).max, rtol=1e-6)
    assert pixels.dtype == torch.float32 and schema.sizes() == {"n_channels": 2, "image_size": 6}


def test_real_numbers_stay_and_any_scale_may_be_given():
    images = some(np.float64)
    np.testing.assert_allclose(learnt({"image": images})[1], images.astype(np.float32))
    np.testing.assert_allclose(learnt({"image": images}, scale=4)[1], images / 4, rtol=1e-6)
    np.testing.assert_allclose(
        learnt({"image": some(np.uint8).astype(np.int64)}, scale=255)[1], some() / 255, rtol=1e-6
    )
    np.testing.assert_allclose(learnt({"image": torch.as_tensor(some())})[1], some() / 255, rtol=1e-6)
    np.testing.assert_array_equal(learnt({"image": some() > 100})[1], some() > 100)


def test_channels_are_standardised_by_the_training_images():
    images = some() // 2
    schema, pixels = learnt({"image": images}, standardise=True, channels=["dna", "actin"])
    np.testing.assert_allclose(pixels.mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(pixels.std((0, 2, 3), correction=0), 1, rtol=1e-5)
    other = schema.read({"image": some(seed=1)})["image"].gather(np.arange(3))
    unit = images / 255
    wanted = (some(seed=1)[:3] / 255 - unit.mean((0, 2, 3))[:, None, None]) / unit.std((0, 2, 3))[:, None, None]
    np.testing.assert_allclose(other, wanted, rtol=1e-4, atol=1e-5)


def test_images_are_brought_to_one_size():
    """Smaller by averages of areas, larger between pixels; flat images stay flat."""
    images = some()
    pixels = learnt({"image": images}, size=3)[1]
    areas = images.reshape(11, 2, 3, 2, 3, 2).mean((3, 5)) / 255
    np.testing.assert_allclose(pixels, areas, rtol=1e-5)
    flat = np.broadcast_to(np.arange(11, dtype=np.uint8)[:, None, None, None], (11, 2, 5, 7))
    with pytest.raises(ValueError, match=r"5 x 7 pixels must be square: Images\(size=5\)"):
        learnt({"image": flat})
    larger = learnt({"image": flat}, size=9)[1]
    assert larger.shape == (11, 2, 9, 9)
    np.testing.assert_allclose(larger[:, 0, 4, 2], np.arange(11) / 255, rtol=1e-6)
    schema, _ = learnt({"image": images}, size=3)
    assert schema.read({"image": np.zeros((2, 2, 12, 12), np.uint8)})["image"].shape == (2, 2, 3, 3)


def files(folder: Any, images: np.ndarray) -> dict[str, tuple[str, bool]]:
    """Every kind of file with these images, and whether it stays on disk."""
    np.save(folder / "a.npy", images)
    np.savez(folder / "plain.npz", other=images[:2], image=images)
    np.savez(folder / "fortran.npz", image=np.asfortranarray(images))
    np.savez_compressed(folder / "small.npz", image=images)
    zarr.save_array(str(folder / "one.zarr"), images)
    group = zarr.open_group(str(folder / "many.zarr"), mode="w")
    group.create_array("image", data=images, chunks=(4, *images.shape[1:]))
    tifffile.imwrite(folder / "pages.tif", images, metadata={"axes": "TCYX"})
    tifffile.imwrite(folder / "small.tiff", images, compression="zlib", photometric="minisblack", metadata=None)
    names = {"a.npy": True, "plain.npz/image": True, "fortran.npz": True, "small.npz": False, "one.zarr": True}
    names |= {"many.zarr/image": True, "many.zarr": True, "pages.tif": True}
    return {name: (str(folder / name), disk) for name, disk in names.items()}


def test_every_kind_of_file_gives_the_same(tmp_path):
    images = some(np.uint16)
    obs = pd.DataFrame({"y": np.arange(11) % 2}, index=[f"cell{i}" for i in range(11)])
    data = anndata.AnnData(np.zeros((11, 1)), obs=obs, obsm={"image": images})
    wanted = learnt(data, "obsm/image")[1]
    rows = np.array([7, 2, 2, 9])
    for name, (place, disk) in files(tmp_path, images).items():
        schema, pixels = learnt(data, place)
        torch.testing.assert_close(pixels, wanted, msg=name)
        store = schema.read(data)["image"]
        assert store.backed is disk, name
        torch.testing.assert_close(store.gather(rows), wanted[rows])
        torch.testing.assert_close(store.load(rows).gather(np.array([3, 0])), wanted[rows[[3, 0]]])


def test_files_are_read_by_blocks(tmp_path, monkeypatch):
    """A loader visits every image once, from windows that hold few of them in memory."""
    images = np.random.default_rng(0).integers(0, 255, (2000, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    monkeypatch.setattr(image_stacks, "WINDOW_BYTES", 1000 * 64)
    frame = pd.DataFrame({"y": np.arange(2000)})
    schema = fi.Schema(image=fi.Images(str(tmp_path / "a.npy"))).learn(frame)
    dataset = fi.Dataset(schema.read(frame), None, None)
    assert dataset.backed and dataset.window == 512
    asked = []
    stack = schema.read(frame)["image"].stack
    monkeypatch.setattr(type(stack), "rows", lambda self, index: asked.append(len(index)) or self.values[index])
    batches = list(fi.Loader(dataset, np.arange(2000), 100, shuffle=True))
    assert max(asked) <= 512
    seen = torch.cat([batch["index"] for batch in batches])
    assert sorted(seen.tolist()) == list(range(2000)) and seen.tolist() != list(range(2000))
    np.testing.assert_allclose(torch.cat([b["image"] for b in batches])[:, 0], images[seen, 0] / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("images", "given", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), {}, r"no axis of channels: images\[:, None\]"),
        (np.zeros((3, 8, 8, 2), np.uint8), {}, r"channels last; numpy.moveaxis\(images, -1, 1\)"),
        (np.zeros((3, 2), np.uint8), {}, r"\[cells, channels, height, width\], not \(3, 2\)"),
        (
            [np.zeros((1, 8, 8))] * 2 + [np.zeros((1, 8, 9))],
            {},
            r"cell '2' has the shape \(1, 8, 9\), that of the first",
        ),
        (np.full((3, 1, 8, 8), np.nan), {}, r"cell '0', channel 'c0', pixel \(0, 0\) is nan, not finite"),
        (np.full((3, 1, 8, 8), -1, np.int16), {"scale": 255}, "is -1, outside 0 to 255, full intensity"),
        (np.full((3, 1, 8, 8), 700, np.uint16), {"scale": 255}, "is 700, outside 0 to 255, full intensity"),
        (np.full((3, 1, 8, 8), 1, np.int32), {}, r"Images\(scale=...\): int32 has none that is usual"),
        (np.full((3, 1, 8, 8), 9, np.uint8), {"standardise": True}, "channel 'c0' is constant in all images: leave"),
        (np.zeros((3, 2, 8, 8), np.uint8), {"channels": ["a"]}, "1 names for 2 channels"),
        (np.array([["a"]]), {}, "image"),
    ],
    ids=str,
)
def test_what_is_no_image_is_named(images, given, message):
    with pytest.raises(ValueError, match=message):
        learnt({"image": images}, **given)


def test_a_constant_channel_is_told():
    images = some()
    images[:, 1] = 7
    with pytest.warns(UserWarning, match="channel 'c1' is constant in all images"):
        learnt({"image": images})


def test_new_images_are_like_those_of_the_training():
    schema, _ = learnt({"image": some()}, channels=["dna", "actin"])
    with pytest.raises(ValueError, match=r"1 channels, but 2 were trained on \(dna, actin\)"):
        schema.read({"image": some()[:, :1]})
    with pytest.raises(ValueError, match=r"4 x 4 pixels, but 6 x 6 were trained on: fit with Images\(size=...\)"):
        schema.read({"image": some()[:, :, :4, :4]})


def test_what_is_not_there_is_named(tmp_path):
    data = anndata.AnnData(np.zeros((11, 1)), obsm={"picture": some()})
    np.savez(tmp_path / "two.npz", a=some(), b=some())
    np.save(tmp_path / "few.npy", some()[:4])
    for place, message in {
        "obsm/image": r"an array in obsm \('obsm/picture' there\) or a file",
        str(tmp_path / "none.npy"): "there is no file",
        str(tmp_path / "two.npz"): r"has a, b: say which, '.*two.npz/a'",
        str(tmp_path / "two.npz/c"): "has a, b, and no 'c'",
        str(tmp_path / "few.npy"): "has 4 images, and the data 11 cells",
    }.items():
        with pytest.raises(fi.SchemaError, match=message):
            learnt(data, place)
    with pytest.raises(fi.SchemaError, match="no array 'image' in the data; there are picture"):
        learnt({"picture": some()})


def test_places_are_divided_into_file_and_name():
    assert [str(v) for v in divided("/a/b.zarr/c/d")] == ["/a/b.zarr", "c/d"]
    assert [str(v) for v in divided("b.NPZ")] == ["b.NPZ", ""]


def test_a_stored_array_is_mapped_whatever_its_header(tmp_path):
    images = some()
    with zipfile.ZipFile(tmp_path / "long.npz", "w") as file:
        file.writestr("first.txt.npy", b"x" * 1000)
        with file.open("image.npy", "w") as member:
            np.lib.format.write_array(member, images, version=(2, 0))
    stack = open_stack(str(tmp_path / "long.npz/image"))
    assert isinstance(stack.values, np.memmap)
    np.testing.assert_array_equal(stack.rows(np.array([1, 4])), images[[1, 4]])


def test_a_program_of_images_is_fitted_from_disk_and_from_memory_alike(tmp_path):
    @entry("linear-images", title="", cite="", schema=fi.Schema(image=fi.Images()), objective=fi.ELBO())
    class Linear(fi.Program):
        def __init__(self, n_channels: int, image_size: int) -> None:
            super().__init__()
            size = n_channels * image_size**2
            self.loading = torch.nn.Linear(2, size)
            self.encoder = torch.nn.Linear(size, 2)

        def model(self, batch):
            with self.cells(batch):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                mean = self.loading(z).unflatten(-1, batch["image"].shape[1:])
                pyro.sample("pixels", dist.Normal(mean, 0.3).to_event(3), obs=batch["image"])

        def guide(self, batch):
            with self.cells(batch):
                pyro.sample("z", dist.Normal(self.encoder(batch["image"].flatten(1)), 0.5).to_event(1))

    images = np.random.default_rng(0).integers(0, 255, (200, 1, 6, 6), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    given: Any = {"max_epochs": 2, "progress": False, "seed": 0, "device": "cpu"}
    fits = []
    for data, fields in (
        ({"image": images}, None),
        (pd.DataFrame(index=range(200)), {"image": str(tmp_path / "a.npy")}),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fits.append(fi.fit("linear-images", data, fields=fields, **given))
    np.testing.assert_allclose(*(f.latent() for f in fits), rtol=1e-4, atol=1e-5)
