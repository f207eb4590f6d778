"""The examples of docs/serving.md are run as they stand there."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tests.integration.rpc_server import Service, classifier, model, promote, version

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()
(ASYNCIO,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = {
    example.rsplit("/", 1)[-1].strip(): example
    for example in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
}


@pytest.fixture(scope="module")
def shop(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a photograph, beside a server that has the page's model."""
    name = model(service.store, "shop")
    promote(service, name, version(service.store, name, classifier(9)))
    folder = tmp_path_factory.mktemp("page")
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (10, 240, 10)).save(file, "JPEG")
    (folder / "photo.jpg").write_bytes(file.getvalue())
    return folder


def run(example: str, service: Service, folder: Path) -> str:
    """What an example prints, spoken to this server."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = ["bash", "-c", EXAMPLES[example]]
    return told(words, service, folder, env=os.environ | {"PATH": programs})


def told(words: list[str], service: Service, folder: Path, *, env: dict[str, str]) -> str:
    here = [word.replace("127.0.0.1:50051", f"127.0.0.1:{service.port}") for word in words]
    return subprocess.run(
        here,
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def test_the_page_s_examples_are_all_tried_here() -> None:
    tried = {"127.0.0.1:50051", "Predict", "ModelInfer", "ListVersionStatistics"}
    assert set(EXAMPLES) == tried


def test_the_page_s_examples_run(service: Service, shop: Path) -> None:
    assert "inference.GRPCInferenceService" in run("127.0.0.1:50051", service, shop).split()
    predicted = json.loads(run("Predict", service, shop))
    assert predicted["predictions"][0]["classes"][0]["label"] == "green"
    inferred = json.loads(run("ModelInfer", service, shop))
    assert inferred["outputs"][0]["shape"] == ["1", "3"]
    counted = json.loads(run("ListVersionStatistics", service, shop))
    assert counted["statistics"][0]["succeeded"]["count"] == "2"


def test_the_example_for_asyncio_predicts_and_tells_what_is_refused(
    service: Service, shop: Path
) -> None:
    printed = told([sys.executable, "-c", ASYNCIO], service, shop, env=dict(os.environ))
    answered, refused = printed.splitlines()
    assert answered.startswith("models/shop/versions/1 RankedLabel(label='green'")
    assert refused.startswith("NOT_FOUND there is no 'domains/night'")


def test_the_page_names_every_metric_and_setting_that_it_speaks_of() -> None:
    from acclimate_service.config import CLIENT, ServeSettings, WorkSettings
    from acclimate_service.rpc.inference_metrics import InferenceCollector

    told = {metric.name for metric in InferenceCollector(dict).collect()}
    assert set(re.findall(r"nv_inference_\w+", PAGE)) == told
    fields = {name.upper() for name in (*ServeSettings.model_fields, *WorkSettings.model_fields)}
    assert set(re.findall(r"ACCLIMATE_(\w+)", PAGE)) <= fields | set(CLIENT)
