"""transformers' own common tests of configurations, models and pipelines pass for ours.

They are in the source distribution of transformers, which is fetched once. They run in a process of their own, because
their package is called `tests` as our folder is; `common/model_tests.py` tells them what to test.

Run, with the figures: python -m pytest -q -rP tests/test_common.py
"""

import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import transformers
from filelock import FileLock


pytestmark = pytest.mark.slow

HERE = Path(__file__).parent

# What fails because it cannot apply: by class and test, the failure and the reason.
DRAWN = (
    r"on meta device\):\s+`vectors` in module `TextJepaLexicalSpace` called from `TextJepaPreTrainedModel`\s*$",
    "a buffer that is initialised twice has to be equal, but the lexical space is drawn at random",
)
COPIED = (
    r"^AssertionError: Items in the second set but not the first:(\s+'target_encoder\.[\w.]+inv_freq')+ :",
    "a missing target encoder is copied, so all its tensors may be missing, also those that no file ever holds",
)
NOT_BUILT = (
    r"^AssertionError: False is not true : \['target_encoder'\] were specified",
    "the target encoder, kept in float32, is not built where no term of the loss reads it",
)
NO_LAYERS = (
    r"^(AssertionError: \[\] is not true|StopIteration(\nStopIteration)*)$",
    "an encoder without layers has none whose activations could be computed again",
)
ACCEPTED = {
    ("TextJepaForPreTrainingTest", "test_init_weights_can_init_buffers"): DRAWN,
    ("TextJepaForPreTrainingTest", "test_model_weights_reload_no_missing_tied_weights"): COPIED,
    ("StaticTest", "test_init_weights_can_init_buffers"): DRAWN,
    ("StaticTest", "test_keep_in_fp32_modules_exist"): NOT_BUILT,
    ("StaticTest", "test_gradient_checkpointing_enable_disable"): NO_LAYERS,
    ("StaticTest", "test_training_gradient_checkpointing"): NO_LAYERS,
    ("StaticTest", "test_training_gradient_checkpointing_use_reentrant_false"): NO_LAYERS,
    ("StaticTest", "test_training_gradient_checkpointing_use_reentrant_true"): NO_LAYERS,
}

# The common tests leave out what they cannot load: these have to run.
RUN_IN_ANY_CASE = [
    ("TextJepaConfigTest", "test_config"),
    ("TextJepaModelTest", "test_pipeline_feature_extraction"),
    ("TextJepaModelTest", "test_pipeline_feature_extraction_fp16"),
    ("TextJepaForSequenceClassificationTest", "test_pipeline_text_classification"),
    ("TextJepaForSequenceClassificationTest", "test_pipeline_text_classification_fp16"),
    ("TextJepaForPreTrainingTest", "test_keep_in_fp32_modules"),
    ("TextJepaForPreTrainingTest", "test_training_gradient_checkpointing"),
    ("StaticTest", "test_hidden_states_output"),
]


def fetch_tests(folder, download_folder):
    """Puts the `tests` package of the installed version of transformers into a folder; skips without an index."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries", "1", "--timeout", "20", "--no-deps"]
    command += ["--no-binary", "transformers", "--dest", download_folder, f"transformers=={transformers.__version__}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(download_folder.glob("transformers-*.tar.gz"))
    if result.returncode != 0 or not archives:
        pytest.skip(f"no source distribution of transformers from the package index\n{result.stderr}")
    unpacked = download_folder / "unpacked"
    with tarfile.open(archives[0]) as archive:
        members = [member for member in archive.getmembers() if member.name.split("/")[1:2] == ["tests"]]
        archive.extractall(unpacked, members, filter="data")
    tests = next(unpacked.glob("transformers-*/tests"))
    (tests / "__init__.py").touch()
    # The pipeline tests look for the library beside themselves.
    library = folder / "src" / "transformers"
    library.parent.mkdir(exist_ok=True)
    library.unlink(missing_ok=True)
    library.symlink_to(Path(transformers.__file__).parent, target_is_directory=True)
    tests.rename(folder / "tests")


@pytest.fixture(scope="session")
def transformers_tests(pytestconfig, tmp_path_factory):
    """A folder with the `tests` package of transformers, kept in the cache of pytest."""
    folder = pytestconfig.cache.mkdir(f"transformers-{transformers.__version__}")
    with FileLock(folder / "lock"):
        if not (folder / "tests").is_dir():
            fetch_tests(folder, tmp_path_factory.mktemp("download"))
    return folder


def message_of(failure):
    """What pytest prints of an exception behind the letter E; the attribute `message` is cut off."""
    lines = failure.text.splitlines()
    return "\n".join(line[1:].strip() for line in lines if line.startswith("E "))


@pytest.fixture(scope="session")
def outcomes(transformers_tests, tmp_path_factory):
    """`"passed"`, `"skipped"` or the message of the failure, for each common test by class and name."""
    report = tmp_path_factory.mktemp("common") / "report.xml"
    # Our settings and fixtures are not theirs.
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += [f"--confcutdir={HERE / 'common'}", f"--junitxml={report}", "model_tests.py"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(transformers_tests), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command,
        cwd=HERE / "common",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode in (0, 1), result.stdout[-3000:] + result.stderr[-3000:]

    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        key = (case.get("classname").split(".")[-1], case.get("name"))
        failures = [*case.iter("failure"), *case.iter("error")]
        if failures:
            outcomes[key] = "\n".join(message_of(failure) for failure in failures)
        elif case.find("skipped") is not None:
            outcomes[key] = "skipped"
        else:
            outcomes[key] = "passed"
    return outcomes


def failures_of(outcomes):
    return {key: outcome for key, outcome in outcomes.items() if outcome not in ("passed", "skipped")}


def is_accepted(key, failure):
    if key not in ACCEPTED:
        return False
    pattern, _ = ACCEPTED[key]
    return re.search(pattern, failure) is not None


def test_common_tests_of_transformers_pass_for_our_classes(outcomes):
    failures = failures_of(outcomes)
    figures = Counter("failed" if key in failures else outcome for key, outcome in outcomes.items())
    sys.stdout.write(f"{figures}\n")
    assert {key: failure for key, failure in failures.items() if not is_accepted(key, failure)} == {}
    assert [key for key in RUN_IN_ANY_CASE if outcomes[key] != "passed"] == []


@pytest.mark.parametrize("key", ACCEPTED, ids=".".join)
def test_an_accepted_exception_still_fails(outcomes, key):
    _, reason = ACCEPTED[key]
    assert key in failures_of(outcomes), f"no exception any more: {reason}"
