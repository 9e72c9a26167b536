"""Exported files give the model's own scores, also in other processes and languages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hyenarec.cli import main
from hyenarec.config import AttentionConfig, HyenaConfig, ModelConfig
from hyenarec.data.ids import Ids
from hyenarec.errors import UserError
from hyenarec.exporting import export_model, run_onnx
from hyenarec.int8 import round_weights
from hyenarec.mixers import MIXERS
from hyenarec.model import SequenceModel
from hyenarec.programs import HistoryProgram, StepProgram, export, inference_copy
from hyenarec.recommendation import Recommender
from hyenarec_kernels import backends, native
from hyenarec_kernels.backends import cpu

needs_compiler = pytest.mark.skipif(
    cpu.probe() is not None or shutil.which("g++") is None, reason="a package takes the compiled library and g++"
)
EXAMPLE = Path(__file__).parents[2] / "examples" / "recommend.cpp"
ITEMS = [f"item-{i:02d}" for i in range(30)]
WHOLE = ("hyena", "attention", "hydra")  # these export both programs
CAUSAL = [name for name, mixer in MIXERS.items() if mixer.causal]
TOP = 5
# Runs the package of a step as a program without this Python package does.
STEPS = """
import json, sys, torch
library, package, folder = sys.argv[1:]
torch.ops.load_library(library)
step = torch._inductor.aoti_load_package(package)
state = json.load(open(folder + "/export.json"))["step"]["state"]
tensors = [torch.zeros(2, *one["shape"], dtype=getattr(torch, one["dtype"])) for one in state.values()]
events = torch.load(folder + "/events")
found = [step(items, *tensors) for items in events.T.contiguous()]
assert not any(name.startswith("hyenarec") for name in sys.modules)
torch.save([list(one) for one in found], folder + "/found")
"""


def recommender(mixer: str = "hyena", length: int = 40, **options: Any) -> Recommender:
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(mixer=mixer, dim=8, max_length=length, **options), len(ITEMS))
    with torch.no_grad():  # away from the initial values, which hide mistakes
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    ids = Ids.from_values(ITEMS)
    config = {"training": {"bf16": False, "exclude_seen": False}, "data": {"time_unit": "s"}}
    return Recommender(model, ids, ids, config, torch.device("cpu"))


def by_number(reader: Recommender, histories: list[list[int]]) -> list[list[tuple[int, float]]]:
    """The recommender's own answers, as item numbers and scores."""
    answers = reader.recommend([[ITEMS[i] for i in history] for history in histories], TOP)
    return [[(ITEMS.index(str(entry.item)), entry.score) for entry in answer] for answer in answers]


OTHERS = [
    ("hyena", {}),
    ("attention", {}),
    ("attention", {"attention": AttentionConfig(cache="window", cache_events=8)}),
]


@pytest.mark.parametrize(
    ("mixer", "options"),
    [
        (
            "hyena",
            {"hyena": HyenaConfig(local=4), "embedding": "decoupled", "block": "ligr", "blocks": 1, "repeats": "on"},
        ),
        ("attention", {"attention": AttentionConfig(cache="citrus", cache_events=8)}),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS),
    ],  # 5 s each
)
def test_programs_of_any_users_and_events(mixer: str, options: dict[str, Any], tmp_path: Path) -> None:
    exported = export_model(recommender(mixer, **options), tmp_path, formats=("program",), top=TOP)
    written = exported.files
    assert not exported.left_out and [file.path.name for file in written] == ["history.pt2", "step.pt2"]
    assert all(file.difference < 1e-5 and file.size == file.path.stat().st_size for file in written)
    described = json.loads((tmp_path / "export.json").read_text())
    assert described["items"] == ITEMS and described["max_length"] == 40
    assert described["step"]["inputs"] == ["items", *described["step"]["state"]]


@pytest.mark.slow
@pytest.mark.parametrize("mixer", CAUSAL)
def test_every_causal_mixer_is_exported_or_says_why_not(mixer: str, tmp_path: Path) -> None:
    reason = f"mixer {mixer}: torch.export cannot read its "
    try:
        exported = export_model(recommender(mixer), tmp_path, formats=("program",), top=TOP)
    except UserError as error:
        assert mixer not in WHOLE and str(error).startswith(reason)
        return
    assert all(file.difference < 1e-5 for file in exported.files)
    assert all(line.startswith(reason) and "\n" not in line for line in exported.left_out)
    assert len(exported.files) + len(exported.left_out) == 2
    assert mixer not in WHOLE or not exported.left_out


def test_what_torch_unrolls_is_left_out(tmp_path: Path) -> None:
    """torch would unroll the GRU's loop over the example's events and compute nonsense for other lengths."""
    exported = export_model(recommender("gru"), tmp_path, formats=("program",), top=TOP)
    assert [file.path.name for file in exported.files] == ["step.pt2"]
    assert "mixer gru: torch.export cannot read its forward" in exported.left_out[0]


@pytest.mark.parametrize(
    ("mixer", "options"),
    [
        ("hyena", {"hyena": HyenaConfig(local=4), "blocks": 1, "repeats": "on"}),  # 7 s each
        pytest.param("hyena", {}, marks=pytest.mark.slow),
        pytest.param("attention", {}, marks=pytest.mark.slow),
    ],
)
def test_onnx_of_standard_operators(mixer: str, options: dict[str, Any], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    reader = recommender(mixer, length=60, **options)
    (file,) = export_model(reader, tmp_path, formats=("onnx",), top=TOP).files
    assert file.difference < 1e-5
    model = onnx.load(file.path)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    histories = [[3, 17, 2], [5]]
    scores, best = run_onnx(file.path)(torch.tensor([[3, 17, 2], [5, 0, 0]]), torch.tensor([3, 1]))
    for row, answer in enumerate(by_number(reader, histories)):
        assert best[row].tolist() == [item for item, _ in answer]
        assert scores[row].tolist() == pytest.approx([score for _, score in answer], abs=1e-4)


@needs_compiler
@pytest.mark.slow
def test_packages_run_without_python(tmp_path: Path) -> None:
    """Packages are right in the examples' C++ program, in a process with only the library, and in sessions."""
    reader = recommender(length=512)
    written = export_model(reader, tmp_path, formats=("package",), top=TOP).files
    assert [file.path.name for file in written] == ["history-package.pt2", "step-package.pt2"]
    torch_folder = Path(torch.__file__).parent
    libraries = [f"-L{torch_folder}/lib", f"-Wl,-rpath,{torch_folder}/lib", "-Wl,--no-as-needed"]
    libraries += ["-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    program = tmp_path / "recommend"
    build = ["g++", "-std=c++20", f"-I{torch_folder}/include", str(EXAMPLE), "-o", str(program), *libraries]
    subprocess.run(build, check=True)
    histories = [[3, 17, 2, 8, 8, 1], [5], [9, 4]]
    texts = [",".join(map(str, history)) for history in histories]
    command = [str(program), native.library(), str(tmp_path / "history-package.pt2"), *texts]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for line, answer in zip(lines, by_number(reader, histories), strict=True):
        pairs = [pair.split(":") for pair in line.split(" ")]
        assert [int(item) for item, _ in pairs] == [item for item, _ in answer]
        assert [float(score) for _, score in pairs] == pytest.approx([score for _, score in answer], rel=1e-4)

    events = torch.randint(len(ITEMS), (2, 150))
    torch.save(events, tmp_path / "events")
    arguments = [native.library(), str(tmp_path / "step-package.pt2"), str(tmp_path)]
    subprocess.run([sys.executable, "-c", STEPS, *arguments], check=True)
    for at in (0, 1, 64, 149):
        scores, best = torch.load(tmp_path / "found")[at]
        for row, answer in enumerate(by_number(reader, events[:, : at + 1].tolist())):
            assert best[row].tolist() == [item for item, _ in answer]
            assert scores[row].tolist() == pytest.approx([score for _, score in answer], abs=1e-4)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "length"), [("hyena", 512), ("attention", 40)])  # 512: compact states with levels
def test_a_compiled_recommender_answers_the_same(mixer: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, compiled = recommender(mixer, length), recommender(mixer, length)
    compact = mixer == "hyena"
    compiled.compile(compact=compact)
    for name in ("step", "forward"):  # from now on these must not be called
        monkeypatch.setattr(compiled.model, name, None)
    histories = [ITEMS + ITEMS[:5], ITEMS[7:9]]
    want, got = (one.session(histories, compact=compact) for one in (reader, compiled))
    for items, users in ((["item-20", "item-21"], None), (["item-03"], [1]), (["item-04"], [0])):
        for session in (want, got):
            session.append(items, users=users)
        for one, other in zip(want.recommend(4), got.recommend(4), strict=True):
            assert [entry.item for entry in one] == [entry.item for entry in other]
            assert [entry.score for entry in one] == pytest.approx([entry.score for entry in other], abs=1e-4)
    for one, other in zip(reader.recommend(histories, 4), compiled.recommend(histories, 4), strict=True):
        assert [entry.item for entry in one] == [entry.item for entry in other]


def test_programs_name_the_library_s_operators() -> None:
    if cpu.probe() is not None:
        pytest.skip(str(cpu.probe()))
    program = export(StepProgram(inference_copy(recommender(length=512).model), TOP, compact=True))
    called = {node.target for node in native.use_native(program).graph.nodes if node.op == "call_function"}
    names = {str(target) for target in called if "hyenarec" in str(target)}
    assert names == {"hyenarec_native.block_step.default"}
    state = program.example_inputs[0]
    with torch.no_grad(), backends.use("reference"):  # the program ignores this
        assert len(program.module()(*state)) == 2


def test_positions_are_read_within_their_table() -> None:
    """A row may be longer than the table as long as its history is not; compiled programs check this read alone."""
    program = HistoryProgram(inference_copy(recommender("attention").model), 0)
    items = torch.randint(len(ITEMS), (2, 70))
    torch.testing.assert_close(program(items, torch.tensor([40, 7])), program(items[:, :40], torch.tensor([40, 7])))
    for wrong in (41, 70, 0):
        with pytest.raises(IndexError):
            program(items, torch.tensor([7, wrong]))


def test_eight_bits_are_nearly_the_same() -> None:
    model = inference_copy(recommender().model)
    items, lengths = torch.randint(len(ITEMS), (3, 20)), torch.tensor([20, 3, 11])
    (want,) = HistoryProgram(model, 0)(items, lengths)
    full = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    (got,) = HistoryProgram(round_weights(model), 0)(items, lengths)
    assert 1e-4 < (got - want).norm() / want.norm() < 0.1
    step = StepProgram(model, 0, compact=False)
    state = list(model.init_state(1).tensors().values())
    stepped = [step(item, *state)[0] for item in items[2, :11].split(1)][-1]
    torch.testing.assert_close(stepped[0], got[2], atol=1e-4, rtol=1e-4)
    assert sum(t.numel() * t.element_size() for t in model.state_dict().values()) < 0.7 * full
    assert all(b.values.dtype == torch.int8 for b in model.modules() if hasattr(b, "factors"))


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", str(run), "--out", str(tmp_path / "out"), "--formats", "program", "--k", "3"])
    assert "history.pt2" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export.json", "history.pt2", "step.pt2"]


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^mixer bert4rec: only causal mixers are exported"):
        export_model(recommender("bert4rec"), tmp_path)
    with pytest.raises(UserError, match=r"^option k: 31 is not between 1 and the 30 items"):
        export_model(recommender(), tmp_path, top=31)
    assert not list(tmp_path.iterdir())
