"""A store that others may write: what they put there neither stops a server nor is served without its proof."""

import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import CollectorRegistry

from evolve.export import IR_VERSION, OPSET
from models.errors import DamagedObject, ExportMismatch, InvalidConfig, InvalidRoute, UntrustedRelease
from models.files import LocalFiles, largest
from models.jobs import queue_url
from models.names import ComponentId, GoldenId, SubgraphId, TaskName
from models.push import push
from models.records import encode
from models.route import Route
from models.signatures import Trust, load_signer, new_key, read_signatures, signature_name
from models.store import Current, Store, object_name, release_name
from models.weights import serialize
from service import engine
from service.golden import Proofs
from service.graph import OPERATORS, check_graph
from service.metrics import Metrics
from service.proof_process import ProofLimits
from service.release import StagePool
from service.reload import Watcher
from service.residents import Residents
from service.runtime import start_runtime
from tests.support.on_a_port import listening
from tests.support.stores import TaskPlan, add_task, force_release, lower_all, make_store, store_route

FOLDER = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store", TaskPlan("first", own_blocks=[1], seed=1))


@pytest.fixture
def watch() -> Iterator[Callable[..., Watcher]]:
    """Start a watcher on a store; its `residents` are the releases that it let through."""
    started: list[Watcher] = []

    def start(store: Store, **options: object) -> Watcher:
        residents = Residents(1)
        watcher = Watcher(
            store.folder,
            StagePool(start_runtime("cpu", 1)),
            engine.run,
            residents,
            poll_interval_s=0.05,
            metrics=Metrics(CollectorRegistry()),
            **options,  # type: ignore[arg-type]
        )
        watcher.start()
        started.append(watcher)
        return watcher

    yield start
    for watcher in started:
        watcher.stop()


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def failure_of(watcher: Watcher, release: int | None) -> tuple[str, str]:
    """Wait until a release has failed; return the kind and the text."""

    def is_told() -> bool:
        failure = watcher.status.failure
        return failure is not None and failure.release == release

    wait_for(is_told)
    failure = watcher.status.failure
    assert failure is not None
    return failure.kind, failure.error


def is_live(watcher: Watcher, release: int) -> bool:
    last = watcher.status.last_reload
    return last is not None and last.release == release


def with_block(store: Store, model: onnx.ModelProto) -> Route:
    route = store.routes(store.release())[TaskName("first")]
    graph = SubgraphId(store.put_object(model.SerializeToString(), "onnx"))
    embed, block, *rest = route.stages
    return replace(route, stages=(embed, replace(block, subgraph=graph), *rest))


def model_of(nodes: list[onnx.NodeProto], *initializers: TensorProto) -> onnx.ModelProto:
    tokens = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", 16]) for name in "xy"]
    graph = helper.make_graph(nodes, "foreign", tokens[:1], tokens[1:], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def endless() -> onnx.ModelProto:
    values = [helper.make_tensor_value_info("i", TensorProto.INT64, [])]
    values += [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_empty_tensor_value_info("v")]
    results = [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_empty_tensor_value_info("w")]
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Sin", ["v"], ["w"])], "body", values, results
    )
    times, go = numpy_helper.from_array(np.array(2**62), "times"), numpy_helper.from_array(np.array(True), "go")
    return model_of([helper.make_node("Loop", ["times", "go", "x"], ["y"], body=body)], times, go)


def external(location: str) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)
    return model_of([helper.make_node("Add", ["x", "w"], ["y"])], tensor)


def nested_attribute() -> onnx.ModelProto:
    model = model_of([helper.make_node("Add", ["x", "x"], ["y"])])
    model.graph.node[0].attribute.append(helper.make_attribute("body", model.graph))
    return model


def with_function() -> onnx.ModelProto:
    model = model_of([helper.make_node("Add", ["x", "x"], ["y"])])
    model.functions.append(helper.make_function("", "Add", ["a", "b"], ["c"], [], [helper.make_opsetid("", OPSET)]))
    return model


FOREIGN = {
    "endless": (endless, "has the operator 'Loop', which is not among the"),
    "identity": (
        lambda: model_of([helper.make_node("Identity", ["x"], ["y"])]),
        "has the operator 'Identity', which is not among the",
    ),
    "other-domain": (
        lambda: model_of([helper.make_node("Add", ["x", "x"], ["y"], domain="com.example")]),
        "has the operator 'com.example.Add', which is not among the",
    ),
    "nested": (nested_attribute, "has a graph inside of its operator 'Add'"),
    "function": (with_function, "has functions of its own"),
    "parent": (lambda: external("../../secret"), "reads the weights 'w' from '../../secret', a file that is not"),
    "absolute": (lambda: external("/etc/passwd"), "reads the weights 'w' from '/etc/passwd', a file that is not"),
    "beside": (lambda: external("link.bin"), "reads the weights 'w' from 'link.bin', a file that is not"),
    "pixels-as-sizes": (
        lambda: model_of([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64)]),
        "casts to something else than float32 or float16",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_graph_of_other_operators_is_refused_before_it_is_loaded(store: Store, kind: str) -> None:
    make, message = FOREIGN[kind]
    release = force_release(store, {"first": store.put_route(with_block(store, make()))})
    with pytest.raises(InvalidRoute) as caught:
        StagePool(start_runtime("cpu", 1)).load_release(store, release.number, [])
    assert message in str(caught.value)
    assert "needed by task 'first'" in str(caught.value)


@pytest.mark.parametrize("data", [b"\x00", b"\xff" * 40, b"\x3a\x7f", b""], ids=["zero", "ones", "cut-off", "empty"])
def test_what_is_no_graph_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRoute, match=r"^subgraph x (is no ONNX graph|has 0 graphs)"):
        check_graph(data, files=(), shown="subgraph x")


def test_the_allowed_operators_are_those_that_are_exported(store: Store) -> None:
    add_task(store, TaskPlan("second", own_blocks=[0, 2], adapters={1: 4}, image_size=24, seed=2))
    folders = [FOLDER / "tests" / "golden" / name for name in ("format-1", "format-2")]
    lower_all(store, "int8")
    lower_all(store, "float16")
    graphs = [path for folder in (store.folder, *folders) for path in (folder / "objects").glob("*.onnx")]
    found = {
        (node.domain, node.op_type) for path in graphs for node in onnx.load(path, load_external_data=False).graph.node
    }
    assert found == OPERATORS
    for path in graphs:
        names = {other.name for other in path.parent.iterdir()}
        check_graph(path.read_bytes(), files=names, shown=path.name)


def test_a_proof_that_takes_too_long_is_ended_and_the_old_release_serves(
    store: Store, watch: Callable[..., Watcher]
) -> None:
    watcher = watch(store)
    wait_for(lambda: is_live(watcher, 1))
    add_task(store, TaskPlan("second", seed=2))
    hasty = watch(store, limits=ProofLimits(timeout_s=0.01))
    kind, error = failure_of(hasty, 2)
    assert kind == "proof-timeout"
    assert error.startswith("the proof of one of 2 new routes took longer than 0.01 s and was ended: its graph may")
    wait_for(lambda: is_live(watcher, 2))


def test_the_time_of_a_proof_is_that_of_each_route(store: Store, watch: Callable[..., Watcher]) -> None:
    """The start of the process and twelve routes together take longer than one may."""
    for number in range(12):
        add_task(store, TaskPlan(f"more {number}".replace(" ", "-"), own_blocks=[0, 1, 2], seed=20 + number))
    started = time.monotonic()
    watcher = watch(store)
    wait_for(lambda: is_live(watcher, 13), timeout_s=120)
    took_s = time.monotonic() - started
    again = watch(store, limits=ProofLimits(timeout_s=took_s / 2))
    wait_for(lambda: is_live(again, 13) or again.status.failure is not None, timeout_s=120)
    assert again.status.failure is None


def test_a_proof_that_hangs_does_not_keep_the_server_from_another_release(
    store: Store, watch: Callable[..., Watcher]
) -> None:
    watcher = watch(store)
    wait_for(lambda: is_live(watcher, 1))
    hanging: list[psutil.Process] = []

    def stops_a_proof() -> bool:
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if "service.prove" in child.cmdline():
                    child.suspend()
                    hanging.append(child)
        return bool(hanging)

    add_task(store, TaskPlan("second", seed=2))
    wait_for(stops_a_proof)
    store.activate(0)
    wait_for(lambda: is_live(watcher, 0))
    assert not hanging[0].is_running()
    assert watcher.status.failure is None


def test_a_graph_that_takes_all_memory_ends_the_proof_alone(store: Store, watch: Callable[..., Watcher]) -> None:
    shape = numpy_helper.from_array(np.array([2**28], np.int64), "shape")  # 1 GiB, which the machine has
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Expand", ["largest", "shape"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["again"], keepdims=0),
        helper.make_node("Add", ["x", "again"], ["y"]),
    ]
    watcher = watch(store, limits=ProofLimits(memory_bytes=2**28))
    wait_for(lambda: is_live(watcher, 1))
    force_release(store, {"first": store.put_route(with_block(store, model_of(nodes, shape)))})
    kind, _ = failure_of(watcher, 2)
    assert kind == "out-of-memory"
    assert is_live(watcher, 1)


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def put_link(path: Path) -> None:
    outside = path.parents[2] / "outside"
    outside.write_bytes(b"secret")
    path.symlink_to(outside)


def put_giant(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(largest(f"objects/{path.name}") + 1)


ODD = {
    "fifo": (put_fifo, "is no regular file that can be read here"),
    "device": (put_device, "is no regular file that can be read here"),
    "link": (put_link, "is no regular file that can be read here"),
    "giant": (put_giant, "bytes are read of such a file"),
}


@pytest.mark.parametrize("suffix", ["onnx", "json", "safetensors"])
@pytest.mark.parametrize("kind", ODD)
def test_an_object_that_is_no_file_of_ours_is_told(store: Store, kind: str, suffix: str) -> None:
    put, message = ODD[kind]
    digest = "0" * 64
    put(store.folder / "objects" / f"{digest}.{suffix}")
    read = store.read_object if suffix == "json" else store.object_path
    with pytest.raises(
        DamagedObject, match=message.replace("bytes", r"at most [\d,]+") if kind == "giant" else message
    ):
        read(digest, suffix, needed_by="a test")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["CURRENT", "releases/000001.json", "keys.json"])
@pytest.mark.parametrize("kind", ["fifo", "device", "link"])
def test_a_record_that_is_no_file_of_ours_is_told(store: Store, name: str, kind: str) -> None:
    (store.folder / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(store.folder / name)
    else:
        (store.folder / name).symlink_to("/dev/zero" if kind == "device" else store.folder / "releases" / "000000.json")
    with pytest.raises(DamagedObject, match="is no regular file that can be read here"):
        store.files.read(name)


def test_a_folder_that_is_a_link_is_not_followed(store: Store, tmp_path: Path) -> None:
    (store.folder / "objects").rename(tmp_path / "elsewhere")
    (store.folder / "objects").symlink_to(tmp_path / "elsewhere")
    for read in (
        lambda: store.files.infos("objects"),
        lambda: store.files.read(f"objects/{store.release().root}.json"),
    ):
        with pytest.raises(DamagedObject, match="is no regular file that can be read here"):
            read()


def test_files_that_are_written_are_no_way_out_of_the_store(store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("of somebody else")
    other.chmod(0o644)
    for name in ("keys.json", "LOCK", "jobs.sqlite"):
        (store.folder / name).unlink(missing_ok=True)
        (store.folder / name).symlink_to(other)
    store.local_files.close_to_others()
    with pytest.raises(DamagedObject, match=r"LOCK is no regular file that can be read here .*: links, pipes and dev"):
        store.activate(0)
    with pytest.raises(DamagedObject, match=r"jobs\.sqlite is no regular file"):
        queue_url(store, None)
    assert (other.read_text(), other.stat().st_mode & 0o777) == ("of somebody else", 0o644)


def test_a_store_may_be_reached_by_a_link(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.folder)
    assert Store.open(tmp_path / "link").release().number == 1


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"format_version":1,"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}", id="deep"),
        pytest.param(b'{"format_version":1,"x":"\\ud800"}', id="surrogate"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"\xff", id="no-text"),
        pytest.param(b"", id="empty"),
    ],
)
def test_json_of_any_kind_is_damaged_and_no_crash(store: Store, content: bytes) -> None:
    (store.folder / "CURRENT").write_bytes(content)
    with pytest.raises(DamagedObject, match="CURRENT is damaged: not a JSON record with a format_version"):
        store.current()


def test_a_giant_pointer_leaves_the_old_release_serving(store: Store, watch: Callable[..., Watcher]) -> None:
    watcher = watch(store)
    wait_for(lambda: is_live(watcher, 1))
    with (store.folder / "CURRENT").open("wb") as file:
        file.truncate(2**30)
    kind, error = failure_of(watcher, None)
    assert kind == "damaged-object"
    assert "CURRENT has 1,073,741,824 bytes; at most 1,048,576 are read of such a file" in error


STRAY = [
    "notes.json", "\u00b2.json", "\u0663.json", "007.json", "-1.json", "1e3.json", "000002", "000002.json.bak",
    "line\nbreak.json", "9" * 60 + ".json",
]  # fmt: skip


def test_stray_names_stop_nothing(store: Store) -> None:
    releases = store.folder / "releases"
    for name in STRAY:
        (releases / name).write_text("x")
    (releases / "000333.json").mkdir()
    os.mkfifo(releases / "000777.json")
    (releases / "000888.json").symlink_to("/dev/zero")
    (releases / ".new-link").symlink_to("/dev/zero")
    (releases / ".new-folder").mkdir()
    (store.folder / "journal" / "first" / "stray").mkdir(parents=True)
    assert store.release_numbers() == [0, 1]
    for command in (["list"], ["verify", "--all"], ["gc", "--keep", "1"], ["push", str(store.folder.parent / "copy")]):
        done = subprocess.run(
            [sys.executable, "-m", "models", "releases", command[0], str(store.folder), *command[1:]],
            cwd=FOLDER, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    with listening(store.folder) as (address, _):
        listed = httpx.get(f"{address}/v1/releases").raise_for_status().json()
    assert [row["release"] for row in listed["releases"]] == [1, 0]
    assert add_task(store, TaskPlan("second", seed=2)).number == 2


def test_a_damaged_release_does_not_hide_the_others(store: Store) -> None:
    (store.folder / "releases" / "000005.json").write_text("x")
    with listening(store.folder) as (address, _):
        listed = httpx.get(f"{address}/v1/releases").raise_for_status().json()
    assert [row["release"] for row in listed["releases"]] == [1, 0]


def test_an_engine_that_does_not_answer_is_not_ready(store: Store) -> None:
    """As /readyz, which BentoML answers and which asks the same function."""
    with listening(store.folder, engine_stall_s=0.05) as (address, server):
        assert httpx.get(f"{address}/v2/health/ready").status_code == 200
        server.batcher._busy_since = 0.0  # as a batch that began when the machine did
        answer = httpx.get(f"{address}/v2/health/ready")
        server.batcher._busy_since = None
    assert answer.status_code == 503
    assert "the engine has not answered for" in answer.json()["detail"]
    assert "at most 0.05 s are allowed (MU2NET_ENGINE_STALL_S)" in answer.json()["detail"]


# golden samples


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6], ids=["usual", "small", "tiny"])
def test_another_block_fails_however_small_the_logits_are(store: Store, scale: float) -> None:
    """A route whose head gives small logits, and the same with the root's block in place of its own."""
    route = store.routes(store.release())[TaskName("first")]
    head = route.stages[-1].components[-1]
    rng = np.random.default_rng(0)
    weights = {"weight": (scale * rng.normal(size=(3, 16))).astype(np.float32), "bias": np.ones(3, np.float32)}
    small = replace(head, id=ComponentId(store.put_object(serialize(weights), "safetensors")))
    last = replace(
        route.stages[-1], components=(*route.stages[-1].components[:-1], small), subgraph=SubgraphId("1" * 64)
    )
    honest = replace(route, stages=(*route.stages[:-1], last))
    pool = StagePool(start_runtime("cpu", 1))
    first = TaskName("first")
    pixels = rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    loaded = pool.load_route(store, first, store.put_route(honest))
    logits = np.stack([engine.run([engine.Row(image, loaded)])[0] for image in pixels])
    golden = GoldenId(store.put_object(serialize({"pixels": pixels, "logits": logits}), "safetensors"))
    Proofs().check(pool.load_route(store, first, store.put_route(replace(honest, golden=golden))), store, engine.run)
    blocks = [honest.stages[0], store.root().stages[2], *honest.stages[2:]]
    other = store.put_route(replace(honest, golden=golden, stages=tuple(blocks)))
    with pytest.raises(ExportMismatch, match=r"task 'first': golden sample \d differs by"):
        Proofs().check(pool.load_route(store, first, other), store, engine.run)


# signatures


@pytest.fixture
def key(tmp_path: Path) -> Path:
    new_key(tmp_path / "key")
    return tmp_path / "key"


def test_keys_are_what_openssl_reads_and_private(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    public = load_signer(key).public
    assert Trust.of([f"{key}.pub"]) == Trust.of(public) == Trust(frozenset({public}))
    with pytest.raises(InvalidConfig, match="is there already: choose another name"):
        new_key(key)
    key.chmod(0o644)
    with pytest.raises(InvalidConfig, match="may be read by others than its owner: chmod 600"):
        load_signer(key)
    with pytest.raises(InvalidConfig, match="the key nowhere cannot be read"):
        Trust.of("nowhere")
    with pytest.raises(InvalidConfig, match="no public key that can be read"):
        Trust.of(str(key))


def test_a_server_that_trusts_keys_takes_up_signed_releases_only(
    store: Store, key: Path, watch: Callable[..., Watcher]
) -> None:
    signer = load_signer(key)
    signer(store.files, store.release())
    watcher = watch(store, trust=Trust.of(signer.public))
    wait_for(lambda: is_live(watcher, 1))
    made = add_task(store, TaskPlan("second", seed=2))
    kind, error = failure_of(watcher, 2)
    assert kind == "untrusted-release"
    assert error.startswith(
        f"release 2 of {store.folder} is not signed, and only signed releases are trusted here: sign"
    )
    signer(store.files, made)
    wait_for(lambda: is_live(watcher, 2))
    store.signer = signer
    assert add_task(store, TaskPlan("third", seed=3)).number == 3  # signed before the pointer moves
    wait_for(lambda: is_live(watcher, 3))
    store.activate(1)
    wait_for(lambda: is_live(watcher, 1))


def test_a_signature_fits_its_release_alone(store: Store, key: Path, tmp_path: Path) -> None:
    signer, trust = load_signer(key), Trust.of(f"{key}.pub")
    release = store.release()
    signer(store.files, release)
    trust.check(store.files, release)
    trust.check(store.files, replace(release, reason="another text for people"))
    other = force_release(store, {"first": store_route(store, TaskPlan("first", seed=7))})
    (store.folder / signature_name(2)).write_bytes((store.folder / signature_name(1)).read_bytes())
    with pytest.raises(UntrustedRelease, match=r"release 2 of .* is not what was signed by"):
        trust.check(store.files, other)
    new_key(tmp_path / "stranger")
    (store.folder / signature_name(2)).unlink()
    load_signer(tmp_path / "stranger")(store.files, other)
    with pytest.raises(UntrustedRelease, match=r"is signed by .* only, which is not trusted here"):
        trust.check(store.files, other)
    signer(store.files, other)
    trust.check(store.files, other)
    assert len(read_signatures(store.files, 2)) == 2


def test_signatures_go_along_and_go_with_their_release(store: Store, key: Path, tmp_path: Path) -> None:
    signer, trust = load_signer(key), Trust.of(f"{key}.pub")
    store.signer = signer
    add_task(store, TaskPlan("second", seed=2))
    pushed = push(store, tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")
    trust.check(copy.files, pushed.release)
    again = add_task(store, TaskPlan("third", seed=3))
    trust.check(copy.files, push(store, tmp_path / "copy").release)
    for path in (store.folder / "releases").glob("*.json"):
        os.utime(path, (0, 0))
    done = subprocess.run(
        [sys.executable, "-m", "models", "releases", "gc", str(store.folder), "--keep", "1"],
        cwd=FOLDER, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (store.folder / "signatures").iterdir()] == [f"{again.number:06d}.json"]


def test_the_commands_sign_and_verify(store: Store, tmp_path: Path) -> None:
    def mu2net(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "models", "releases", *arguments]
        return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)

    key, place = str(tmp_path / "key"), str(store.folder)
    made = json.loads(mu2net("keygen", key, "--json").stdout)
    wrong = mu2net("verify", place, "--trust", f"{key}.pub")
    assert wrong.returncode == 1
    assert re.search(r"release 1 of .* is not signed", wrong.stdout)
    assert json.loads(mu2net("sign", place, "--key", key, "--json").stdout)["signed_by"] == [made["public_key"]]
    assert mu2net("verify", place, "--trust", made["public_key"]).returncode == 0
    assert mu2net("remove", place, "first", "--sign", key).returncode == 0
    assert mu2net("verify", place, "--trust", made["public_key"]).returncode == 0


def test_activating_an_unsigned_release_over_http_is_refused(store: Store, key: Path) -> None:
    signer = load_signer(key)
    signer(store.files, store.release())
    store.signer = signer
    add_task(store, TaskPlan("second", seed=2))
    with listening(store.folder, trust=str(f"{key}.pub")) as (address, server):
        own_user = {"authorization": f"Bearer {server.own_token}"}
        refused = httpx.post(f"{address}/v1/releases/0/activate", headers=own_user)
        moved = httpx.post(f"{address}/v1/releases/1/activate", headers=own_user)
    assert refused.status_code == 409
    assert refused.json()["type"] == "urn:mu2net:untrusted-release"
    assert "release 0 of" in refused.json()["detail"]
    assert moved.status_code == 202
    assert store.current() == Current(1, is_held=True)


def test_keys_may_lie_where_publishers_do_not_write(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "private"
    place.mkdir()
    command = [sys.executable, "-m", "models", "keys", "create", str(store.folder), "shop", "--classify", "first"]
    done = subprocess.run(
        [*command, "--keys", str(place)], cwd=FOLDER, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (place / "keys.json").is_file()
    assert not (store.folder / "keys.json").exists()
    with listening(store.folder, keys=str(place)) as (address, _):
        assert httpx.get(f"{address}/v1/tasks").status_code == 401
        headers = {"Authorization": f"Bearer {done.stdout.strip()}"}
        assert httpx.get(f"{address}/v1/tasks", headers=headers).status_code == 200


def test_keys_that_are_named_and_missing_open_no_server(store: Store, tmp_path: Path) -> None:
    with listening(store.folder, keys=str(tmp_path)) as (address, _):
        answer = httpx.get(f"{address}/v1/tasks")
    assert answer.status_code == 503
    assert "the store's keys could not be read yet" in answer.json()["detail"]


def test_names_of_files_and_limits() -> None:
    assert largest("CURRENT") == 2**20
    assert largest(object_name("0" * 64, "onnx")) == 64 * 2**20
    assert release_name(7) == "releases/000007.json"
    assert encode(Current(1))
    assert LocalFiles(FOLDER).exists("README.md")


@pytest.mark.parametrize("is_remote", [False, True], ids=["folder", "url"])
def test_a_store_goes_to_other_processes_without_the_key_that_signs(is_remote: bool, key: Path, tmp_path: Path) -> None:
    place = f"memory://{tmp_path.name}" if is_remote else tmp_path / "store"
    made = make_store(tmp_path / "store", TaskPlan("first"))
    if is_remote:
        push(made, place, cache=tmp_path / "cache")
    store = Store.open(place, cache=tmp_path / "cache" if is_remote else None)
    store.signer = load_signer(key)
    found = pickle.loads(pickle.dumps(store))
    assert found.release() == store.release()
    assert found.signer is None
