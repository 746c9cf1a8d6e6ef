"""The command `dashboard`: what it would send, against the loopback server."""

import json
import os
import shutil

import golden_workdir
import pytest
import wandb_server

from subl_jax.app import dashboard
from subl_jax.results.load import load

pytest.importorskip("wandb_workspaces")
# Of wandb_workspaces' own.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style", "ignore:Support for class-based")


@pytest.fixture(scope="module")
def listening(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, wandb_server.serving() as server:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("NETRC", str(home / "netrc"))
        patch.setenv("WANDB_CONFIG_DIR", str(home / "config"))
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", wandb_server.KEY)
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        import wandb

        wandb.teardown()
        yield server
        wandb.teardown()


@pytest.fixture
def server(listening):
    listening.reset()
    return listening


def panels(spec):
    (section,) = spec["section"]["panelBankConfig"]["sections"]
    return section["panels"]


def test_views_and_a_report_are_saved(server, tmp_path, capsys):
    workdir = shutil.copytree(golden_workdir.GOLDEN / "workdir", tmp_path / "workdir")
    (workdir / "figures").mkdir()
    (workdir / "figures" / "transfer.png").write_bytes(b"a picture")
    status = dashboard.main(["--project=us/subl", f"--workdir={workdir}"])
    told = capsys.readouterr()
    assert status == 0, told.err
    saved = {variables["displayName"]: variables for variables in server.saved}
    sweep = load(workdir).sweep["sweep"]
    assert saved.keys() == {"Transfer by arm", "Comparison", "Retention", "Throughput", sweep}
    assert {(each["entityName"], each["projectName"]) for each in saved.values()} == {("us", "subl")}
    assert all(f"{name}: http" in told.out for name in saved)

    transfer = json.loads(saved["Transfer by arm"]["spec"])
    first = panels(transfer)[0]["config"]
    assert first["metrics"] == ["target"] and first["xAxis"] == "student/step"
    assert first["groupBy"] == "arm.value" and first["groupArea"] == "stderr" and first["groupAgg"] == "mean"
    assert [each["config"]["metrics"] for each in panels(transfer)][1:3] == [["target/chance"], ["target/off_diagonal"]]
    assert "sweep" in json.dumps(transfer["section"]["runSets"][0]["filters"])
    regexes = [each["config"]["metricRegex"] for each in panels(json.loads(saved["Throughput"]["spec"]))]
    assert "groups/.*/lane_steps_per_second" in regexes

    page = saved[sweep]["spec"]
    assert "P(trait)" in page and "figures/transfer" in page and "| trait |" in page.replace("\\", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--project=a:b"], "--project = 'a:b': holds :"),
        (["--projects=a"], "projects"),
        (["subl"], "'subl': not understood"),
        (["--workdir=/nowhere"], "/nowhere: no finished sweep"),
    ],
)
def test_mistakes_are_one_line(arguments, said, capsys):
    assert dashboard.main(arguments) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


def test_a_server_that_refuses_is_one_line(server, capsys):
    server.fault = lambda operation, run: 403
    assert dashboard.main(["--project=us/subl"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: W&B: ") and told.count("\n") == 1


def test_help_is_a_screen(capsys):
    assert dashboard.main(["--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) <= 24
