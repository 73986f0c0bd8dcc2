"""The root: a pretrained plain ViT taken apart into components. Sources: timm's hub, a checkpoint file, or chance."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.component import ComponentKind
from models.errors import InvalidRoot
from models.network import NetworkShape, check_image_size
from models.preprocess import Preprocessing
from models.vit import resample_pos_embed
from models.weights import Weights

HEAD_DIM = 64  # of one attention head in every plain ViT and DeiT from tiny to large
HALF = (0.5, 0.5, 0.5)  # mean and std that timm's plain vit_* weights were trained with
RANDOM_ROOT = {"embed_dim": 64, "depth": 4, "num_heads": 4, "patch_size": 4, "image_size": 32, "seed": 0}
RANDOM_LIMITS = {"embed_dim": 4096, "depth": 64, "num_heads": 64, "patch_size": 64, "image_size": 1024}
TOKEN_INIT_STD = 0.2  # of a random root's class token and position embedding


@dataclass(frozen=True, slots=True)
class Root:
    """A network in parts: patch embedding, position embedding, blocks, norm and perhaps a head."""

    network: NetworkShape
    preprocessing: Preprocessing
    parts: tuple[tuple[ComponentKind, Weights], ...]  # in the order of computation

    @property
    def num_classes(self) -> int:
        kind, weights = self.parts[-1]
        return int(weights["weight"].shape[0]) if kind == "head" else 0


def load_root(
    source: str,
    *,
    image_size: int | None = None,
    num_heads: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Root:
    """Load a root.

    Args:
        source: a checkpoint file in timm's key names (.safetensors, or .pth/.pt/.bin read without running
            code); `random` or `random:embed_dim=64,depth=4,...`; else a timm model name, whose pretrained
            weights come from the hub.
        image_size: pixels; the position embedding is resampled to it. None keeps the source's own.
        num_heads: of a checkpoint file whose heads are not 64 wide.
        mean: overrides the source's own; without either, 0.5 per channel.
        std: as `mean`.

    Raises:
        InvalidRoot: the source cannot be had or is no plain ViT.
    """
    if source == "random" or source.startswith("random:"):
        root = _random_root(source)
    elif Path(source).suffix in {".safetensors", ".pth", ".pt", ".bin"} or Path(source).exists():
        root = _from_tensors(_read_checkpoint(Path(source)), source, num_heads, Preprocessing(HALF, HALF))
    else:
        root = _from_timm(source)
    preprocessing = Preprocessing(mean or root.preprocessing.mean, std or root.preprocessing.std)
    root = replace(root, preprocessing=preprocessing)
    return root if image_size is None else resized(root, image_size)


def resized(root: Root, image_size: int) -> Root:
    """Return the root for another image size, its position embedding resampled; InvalidRoot if patches don't fit."""
    check_image_size(image_size, root.network.patch_size)
    if image_size == root.network.image_size:
        return root
    parts = tuple(
        (kind, resized_pos_embed(weights, image_size, root.network.patch_size) if kind == "pos_embed" else weights)
        for kind, weights in root.parts
    )
    return replace(root, network=replace(root.network, image_size=image_size), parts=parts)


def resized_pos_embed(weights: Weights, image_size: int, patch_size: int) -> Weights:
    """Return a position embedding component for `image_size`."""
    resampled = resample_pos_embed(
        torch.from_numpy(np.array(weights["pos_embed"])), image_size=image_size, patch_size=patch_size
    )
    return {"pos_embed": resampled.numpy()}


def _from_timm(name: str) -> Root:
    import timm  # it takes as long to import as torch, and only making a store needs it

    if not timm.is_model(name):
        raise InvalidRoot(
            f"{name!r} is neither a file nor a timm model: give a checkpoint file, 'random', or a plain ViT of "
            "timm such as vit_tiny_patch16_224, vit_base_patch16_224, deit_small_patch16_224"
        )
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client raises its own and the network's errors
        raise InvalidRoot(
            f"the pretrained weights of {name!r} could not be fetched ({error}): check the network, or download "
            "the model's safetensors file elsewhere and give its path"
        ) from error
    return from_timm_model(model, name)


def from_timm_model(model: torch.nn.Module, name: str) -> Root:
    """Take a timm model apart.

    Raises:
        InvalidRoot: not a plain ViT: another class, pooling other than the class token, or further tensors.
    """
    from timm.data.config import resolve_model_data_config
    from timm.models.vision_transformer import VisionTransformer

    if type(model) is not VisionTransformer or model.global_pool != "token":
        raise InvalidRoot(f"{name!r} is no plain ViT that classifies from its class token: use vit_* or deit_*")
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]  # what timm itself would scale with
    num_heads = int(model.get_submodule("blocks.0.attn").num_heads)  # type: ignore[arg-type]
    return _from_tensors(model.state_dict(), name, num_heads, Preprocessing(config["mean"], config["std"]))


def _read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InvalidRoot(f"there is no checkpoint file {path}: check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        UnpicklingError,
    ) as error:
        reason = str(error).splitlines()[0][:120]  # torch goes on with advice that does not fit here
        raise InvalidRoot(f"{path} is no readable checkpoint ({reason}): give a safetensors or torch file") from error
    for wrapper in ("model", "state_dict", "model_state_dict"):
        loaded = loaded.get(wrapper, loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InvalidRoot(f"{path} holds no plain mapping of names to tensors: save the model's state_dict")
    return loaded


def _random_root(source: str) -> Root:
    values = dict(RANDOM_ROOT)
    for pair in filter(None, source.partition(":")[2].split(",")):
        key, _, number = pair.partition("=")
        if key not in RANDOM_ROOT or not re.fullmatch(r"\d+", number):
            raise InvalidRoot(f"{pair!r} in {source!r}: give whole numbers for some of {', '.join(RANDOM_ROOT)}")
        values[key] = int(number)
    for key, most in RANDOM_LIMITS.items():
        if not 1 <= values[key] <= most:
            raise InvalidRoot(f"{key} = {values[key]} in {source!r}: use a whole number from 1 to {most}")
    dim, patch_size, image_size = values["embed_dim"], values["patch_size"], values["image_size"]
    network = NetworkShape(dim, values["depth"], values["num_heads"], patch_size, image_size, 4 * dim)
    generator = torch.Generator().manual_seed(values["seed"])
    tensors: dict[str, Tensor] = {}
    for name, shape in _expected_shapes(network, num_classes=0).items():
        if name.endswith("weight") and len(shape) == 1:
            tensors[name] = torch.ones(shape)
        elif name.endswith("bias"):
            tensors[name] = torch.zeros(shape)
        else:
            tensors[name] = torch.empty(shape)
            # Unlike timm's 0.02, meant for long training, 1 / sqrt(fan in) makes random blocks pass signals on.
            std = TOKEN_INIT_STD if name in ("cls_token", "pos_embed") else tensors[name][0].numel() ** -0.5
            torch.nn.init.trunc_normal_(tensors[name], std=std, a=-3 * std, b=3 * std, generator=generator)
    return _from_tensors(tensors, source, values["num_heads"], Preprocessing(HALF, HALF))


def _from_tensors(
    tensors: Mapping[str, Tensor], source: str, num_heads: int | None, preprocessing: Preprocessing
) -> Root:
    network, num_classes = _shape_of(tensors, source, num_heads)
    expected = _expected_shapes(network, num_classes)
    found = {name: tuple(values.shape) for name, values in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        listed = "; ".join(
            f"{name}: {found.get(name, 'missing')}, plain: {expected.get(name, 'none')}" for name in wrong[:4]
        )
        raise InvalidRoot(
            f"{source!r} is no plain ViT, {len(wrong)} tensors differ from one ({listed}): use vit_* or deit_*"
        )
    return Root(network, preprocessing, _parts(tensors, network.depth, has_head=num_classes > 0))


def _shape_of(tensors: Mapping[str, Tensor], source: str, num_heads: int | None) -> tuple[NetworkShape, int]:
    try:
        embed_dim, _, patch_size, _ = tensors["patch_embed.proj.weight"].shape
        num_tokens = tensors["pos_embed"].shape[1]
        mlp_dim = tensors["blocks.0.mlp.fc1.weight"].shape[0] if "blocks.0.mlp.fc1.weight" in tensors else 4 * embed_dim
    except (KeyError, ValueError, IndexError) as error:
        raise InvalidRoot(f"{source!r} is no ViT in timm's key names ({error} is missing or misshapen)") from error
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if num_heads is None and embed_dim % HEAD_DIM:
        raise InvalidRoot(
            f"{source!r}: the number of heads cannot be told from embed_dim {embed_dim}: give --num-heads"
        )
    side = round((num_tokens - 1) ** 0.5)
    num_classes = tensors["head.weight"].shape[0] if "head.weight" in tensors else 0
    heads = num_heads or embed_dim // HEAD_DIM
    return NetworkShape(embed_dim, depth, heads, patch_size, side * patch_size, mlp_dim), num_classes


def _expected_shapes(network: NetworkShape, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return timm's tensor names of a plain ViT with their shapes."""
    dim, hidden, patch = network.embed_dim, network.mlp_dim, network.patch_size
    block = {
        "norm1": (dim,),
        "attn.qkv": (3 * dim, dim),
        "attn.proj": (dim, dim),
        "norm2": (dim,),
        "mlp.fc1": (hidden, dim),
        "mlp.fc2": (dim, hidden),
    }
    layers = {"patch_embed.proj": (dim, 3, patch, patch), "norm": (dim,)}
    layers |= {f"blocks.{index}.{name}": shape for index in range(network.depth) for name, shape in block.items()}
    if num_classes:
        layers["head"] = (num_classes, dim)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, network.num_tokens(network.image_size), dim),
    }
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _parts(tensors: Mapping[str, Tensor], depth: int, *, has_head: bool) -> tuple[tuple[ComponentKind, Weights], ...]:
    def below(prefix: str) -> dict[str, np.ndarray]:
        return {
            name.removeprefix(prefix): values.detach().to(torch.float32).numpy()
            for name, values in tensors.items()
            if name.startswith(prefix)
        }

    def named(name: str) -> dict[str, np.ndarray]:
        return {name: tensors[name].detach().to(torch.float32).numpy()}

    parts: list[tuple[ComponentKind, Weights]] = [
        ("patch_embed", below("patch_embed.") | named("cls_token")),
        ("pos_embed", named("pos_embed")),
        *(("block", below(f"blocks.{index}.")) for index in range(depth)),
        ("norm", below("norm.")),
    ]
    if has_head:
        parts.append(("head", below("head.")))
    return tuple(parts)
