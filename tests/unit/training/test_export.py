from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from acclimate_service.domain.errors import ExportMismatch, UnsupportedArchitecture
from acclimate_service.domain.model import Architecture, Preprocessing
from acclimate_service.training import export as export_module
from acclimate_service.training.export import Export, check_parity, export, patch, trace
from acclimate_service.training.network import Network, Stage, build, normalise

LABELS = ("cat", "dog", "emu")
Images = npt.NDArray[np.uint8]


def small(text: str = "torchvision/resnet18", *, seed: int = 0, size: int = 32) -> Network:
    torch.manual_seed(seed)
    library, _, name = text.partition("/")
    architecture = Architecture.model_validate({"library": library, "name": name})
    return build(architecture, labels=len(LABELS), size=size)


def tiny(*, seed: int = 0, size: int = 32) -> Network:
    """A network made by hand, so that tracing it takes a second."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 8, 3, stride=2, bias=False),
            norm=nn.BatchNorm2d(8),
            act=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(1),
            fc=nn.Linear(8, len(LABELS)),
        )
    )
    steps = list(model)
    return Network(
        architecture=Architecture(library="timm", name="tiny"),
        model=model,
        stages=[Stage("stem", steps[:1]), Stage("block0", steps[1:3]), Stage("neck", steps[3:5])],
        head_name="fc",
        preprocessing=Preprocessing(size=size),
    )


def images_for(network: Network, count: int = 8) -> Images:
    size = network.preprocessing.size
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def run(content: bytes, images: Images) -> list[npt.NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    answers: list[npt.NDArray[np.float32]] = session.run(
        ["probabilities", "logits", "embeddings"], {"images": images}
    )
    return answers


@pytest.fixture(scope="module")
def network() -> Network:
    return tiny()


@pytest.fixture(scope="module")
def exported(network: Network) -> Export:
    return export(network, LABELS, images_for(network))


@pytest.fixture(scope="module")
def successor() -> Network:
    return tiny(seed=1)


@pytest.fixture(scope="module")
def fresh(successor: Network) -> bytes:
    return trace(successor, LABELS)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_file_answers_batches_of_any_size_as_the_network_does(
    network: Network, exported: Export, count: int
) -> None:
    images = images_for(network, count)
    probabilities, logits, embeddings = run(exported.onnx, images)
    with torch.no_grad():
        x = normalise(torch.from_numpy(images), network.preprocessing)
        expected = network.eval()(x).numpy()
        np.testing.assert_allclose(embeddings, network.embed(x).numpy(), atol=1e-4)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), expected.argmax(axis=1))
    assert logits.shape == (count, 3)
    assert embeddings.shape == (count, 8)


def test_an_exact_copy_agrees_on_every_image(exported: Export) -> None:
    assert exported.parity.images == 8
    assert exported.parity.agreement == 1
    assert exported.parity.max_abs_logit <= exported.parity.allowed
    assert not exported.patched


def test_the_file_is_whole_and_tells_nothing_of_the_machine_it_was_made_on(
    exported: Export,
) -> None:
    model = onnx.load_model_from_string(exported.onnx)
    onnx.checker.check_model(model)
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in model.graph.initializer)
    assert str(Path.cwd()).encode() not in exported.onnx
    assert b"site-packages" not in exported.onnx
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["labels"] == '["cat", "dog", "emu"]'
    assert facts["architecture"] == "timm/tiny"


def test_every_weight_is_found_under_its_library_name(network: Network, exported: Export) -> None:
    slots = {t.name for t in onnx.load_model_from_string(exported.onnx).graph.initializer}
    wanted = {n for n in network.state_dict() if not n.endswith("num_batches_tracked")}
    assert {export_module.PREFIX + name for name in wanted} <= slots


def test_patching_an_old_file_equals_exporting_afresh(
    exported: Export, successor: Network, fresh: bytes
) -> None:
    assert patch(exported.onnx, successor, LABELS) == fresh
    assert fresh != exported.onnx


def test_a_patched_file_carries_the_new_normalisation_and_labels(exported: Export) -> None:
    other = tiny(seed=1)
    other.preprocessing = Preprocessing(size=32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    again = export(other, ("a", "b", "c"), images_for(other), like=exported.onnx)
    assert again.patched
    facts = {e.key: e.value for e in onnx.load_model_from_string(again.onnx).metadata_props}
    assert facts["labels"] == '["a", "b", "c"]'


def test_a_file_of_another_graph_is_not_patched(exported: Export) -> None:
    assert patch(exported.onnx, tiny(size=64), LABELS) is None
    grown = tiny()
    grown.grow_head(1)
    assert patch(exported.onnx, grown, (*LABELS, "fox")) is None
    model = onnx.load_model_from_string(exported.onnx)
    del model.graph.initializer[0]
    assert patch(model.SerializeToString(), tiny(), LABELS) is None


def test_onnxruntime_folds_every_batchnorm_into_its_convolution(
    exported: Export, tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(exported.onnx, options, providers=["CPUExecutionProvider"])
    assert "BatchNormalization" in {
        n.op_type for n in onnx.load_from_string(exported.onnx).graph.node
    }
    kinds = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert "Conv" in kinds
    assert "BatchNormalization" not in kinds


def test_a_file_of_an_older_layout_is_exported_afresh(exported: Export, network: Network) -> None:
    model = onnx.load_model_from_string(exported.onnx)
    facts = {e.key: e.value for e in model.metadata_props if e.key != "layout"}
    onnx.helper.set_model_props(model, facts)
    assert patch(model.SerializeToString(), network, LABELS) is None


def test_an_old_graph_that_computes_otherwise_is_exported_afresh(
    exported: Export, successor: Network, fresh: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    model = onnx.load_model_from_string(exported.onnx)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Tanh"  # as if a library had changed since
    again = export(successor, LABELS, images_for(successor), like=model.SerializeToString())
    assert not again.patched
    assert again.onnx == fresh
    assert "the old graph no longer fits" in caplog.text


def test_a_file_with_other_weights_is_refused(network: Network, exported: Export) -> None:
    with pytest.raises(ExportMismatch, match="differ from the network's by"):
        check_parity(exported.onnx, tiny(seed=1), images_for(network))


def test_a_network_that_answers_nan_is_refused(exported: Export) -> None:
    broken = tiny()
    with torch.no_grad():
        broken.head.bias.fill_(float("nan"))
    with pytest.raises(ExportMismatch, match="nan"):
        export(broken, LABELS, images_for(broken), like=exported.onnx)


def test_exporting_leaves_the_network_as_it_was_and_prints_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    network = tiny()
    network.freeze_below(2)
    network.train()
    modes = [module.training for module in network.modules()]
    trainable = [p.requires_grad for p in network.parameters()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with caplog.at_level(logging.DEBUG, logger="acclimate_service"):
        trace(network, LABELS)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == trainable
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_the_graph_normalises_as_the_formula_says(network: Network, exported: Export) -> None:
    preprocessing = network.preprocessing
    images = np.arange(256, dtype=np.uint8).repeat(12).reshape(1, 32, 32, 3)
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    formula = ((images.astype(np.float64) / 255 - mean) / std).transpose(0, 3, 1, 2)
    found = normalise(torch.from_numpy(images), preprocessing).numpy()
    np.testing.assert_allclose(found, formula, atol=1e-5, rtol=0)
    in_graph = _input_of_the_first_convolution(exported.onnx, images)
    np.testing.assert_allclose(in_graph, formula, atol=1e-5, rtol=0)


def _input_of_the_first_convolution(content: bytes, images: Images) -> npt.NDArray[np.float32]:
    model = onnx.load_model_from_string(content)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    value = onnx.helper.make_tensor_value_info(first.input[0], onnx.TensorProto.FLOAT, None)
    model.graph.output.append(value)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    answer: npt.NDArray[np.float32] = session.run([first.input[0]], {"images": images})[0]
    return answer


def test_weights_too_large_for_one_file_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "MAX_BYTES", 1000)
    with pytest.raises(UnsupportedArchitecture, match="one ONNX file holds less than 2 GiB"):
        trace(tiny(), LABELS)


def test_a_label_too_few_is_a_programming_error(network: Network) -> None:
    with pytest.raises(ValueError, match="2 labels for a head of 3"):
        export(network, LABELS[:2], images_for(network))


def families() -> Iterator[Any]:
    quick = {"timm/test_resnet": 32, "timm/test_vit": 32}  # which timm has for tests
    thorough = {
        "torchvision/resnet18": 32,
        "timm/vit_tiny_patch16_224": 32,
        "timm/mobilenetv4_conv_small": 64,
        "torchvision/mobilenet_v3_small": 64,
        "torchvision/efficientnet_b0": 64,
        "torchvision/convnext_tiny": 64,
        "torchvision/regnet_y_400mf": 64,
        "torchvision/vit_b_16": 64,
        "torchvision/swin_t": 64,
        "timm/tf_efficientnet_lite0": 64,
        "timm/convnext_atto": 64,
        "timm/resnet18": 64,
        "timm/regnety_002": 64,
        "timm/swin_tiny_patch4_window7_224": 56,
    }
    for name, size in quick.items():
        yield pytest.param(name, size, id=name)
    for name, size in thorough.items():
        yield pytest.param(name, size, id=name, marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "size"), list(families()))
def test_each_family_exports_patches_and_agrees(name: str, size: int) -> None:
    one, other = small(name, size=size), small(name, seed=1, size=size)
    first = export(one, LABELS, images_for(one))
    second = export(other, LABELS, images_for(other), like=first.onnx)
    assert first.parity.agreement == second.parity.agreement == 1
    assert second.patched
    assert run(second.onnx, images_for(other, 1))[1].shape == (1, 3)
