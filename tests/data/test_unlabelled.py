"""Images without labels, in folders at any depth."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from foveal.data.unlabelled import UnlabelledData


def test_images_of_several_folders(tmp_path: Path) -> None:
    """Splits are folders at any depth; no image is read twice; random splits share no image."""
    for name in ("a/b/1.png", "a/2.png", "c/3.png", "c/d/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert [p.name for p in UnlabelledData.open(tmp_path, ["a", "a/b", "c/d"]).paths] == ["2.png", "1.png", "4.png"]
    assert len(UnlabelledData.open(tmp_path, ["all"])) == 4
    (tmp_path / "dataset.yaml").write_text("val_share: 0.25\nexclude: bad.txt\n")
    (tmp_path / "bad.txt").write_text("c/3.png\n")
    parts = [{p.name for p in UnlabelledData.open(tmp_path, [split]).paths} for split in ("train", "val")]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {"1.png", "2.png", "4.png"}
