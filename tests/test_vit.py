"""The network in parts equals timm's whole, and adapters start as nothing."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn

from evolve.mutation import new_adapter
from evolve.network import assemble, build_part
from models.errors import InvalidRoot
from models.root import Root, from_timm_model, load_root
from models.vit import ViT

ARCHITECTURES = ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "vit_small_patch32_224")


def composed(root: Root) -> ViT:
    modules = [build_part(kind, weights, root.network) for kind, weights in root.parts]
    return assemble([kind for kind, _ in root.parts], modules)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_composed_root_equals_timm(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=7).eval()
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        difference = (composed(from_timm_model(model, name))(images) - model(images)).abs().max()
    assert difference <= 1e-5


def test_another_image_size_equals_timms_resampling(tmp_path: Path) -> None:
    torch.manual_seed(0)
    large = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=7).eval()
    torch.nn.init.normal_(large.get_parameter("head.weight"))
    save_file(large.state_dict(), tmp_path / "root.safetensors")
    small = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=7, img_size=64).eval()
    small.load_state_dict(checkpoint_filter_fn(large.state_dict(), small))  # type: ignore[arg-type]
    images = torch.randn(2, 3, 64, 64)
    root = load_root(str(tmp_path / "root.safetensors"), image_size=64)
    with torch.no_grad():
        assert (composed(root)(images) - small(images)).abs().max() <= 1e-5


def test_inserting_an_adapter_changes_nothing() -> None:
    root = load_root("random:embed_dim=32,depth=2,num_heads=2,patch_size=8,image_size=16")
    rng = np.random.default_rng(0)
    plain = composed(root)
    kinds = [kind for kind, _ in root.parts]
    modules = [build_part(kind, weights, root.network) for kind, weights in root.parts]
    modules.insert(2, build_part("adapter", new_adapter(32, 8, rng), root.network))
    kinds.insert(2, "adapter")
    images = torch.randn(3, 3, 16, 16)
    assert torch.equal(assemble(kinds, modules)(images), plain(images))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("vit_of_dreams", "'vit_of_dreams' is neither a file nor a timm model: give a checkpoint file"),
        ("missing.safetensors", "there is no checkpoint file missing.safetensors: check the path"),
        ("random:width=3", "'width=3' in 'random:width=3': give whole numbers for some of embed_dim"),
        ("random:embed_dim=10,num_heads=4", "embed_dim 10 is not a multiple of num_heads 4"),
        ("random:image_size=30,patch_size=8", "image size 30 is not a positive multiple of the patch size 8"),
    ],
    ids=lambda value: value[:24],
)
def test_a_bad_root_is_refused(source: str, message: str) -> None:
    with pytest.raises(InvalidRoot, match=message):
        load_root(source)


def test_a_network_that_is_no_plain_vit_is_refused() -> None:
    with pytest.raises(InvalidRoot, match="'x' is no plain ViT, 25 tensors differ from one"):
        from_timm_model(timm.create_model("deit3_small_patch16_224", pretrained=False), "x")
    with pytest.raises(InvalidRoot, match="'r' is no plain ViT that classifies from its class token"):
        from_timm_model(timm.create_model("resnet18", pretrained=False), "r")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    for name in ("root.safetensors", "root.pth"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(InvalidRoot, match="is no readable checkpoint"):
            load_root(str(tmp_path / name))
