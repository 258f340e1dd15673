"""launch/gke.py makes JobSets that have what their API asks for.

The manifests are read back with PyYAML and compared with Google's and JobSet's documentation.
"""

import re
import subprocess
import sys
import tomllib

import pytest

from tests.launch.fakes import ROOT

GKE = [sys.executable, "launch/gke.py", "--dry-run", "--name=radd", "--image=r/ddm_jax:1"]


def job_set(*words):
    """The parsed manifest, and its only replicated job."""
    yaml = pytest.importorskip("yaml")
    command = [*GKE, *words, "--", "python", "-m", "x", "--a=$(b) 'c' \"d\": é"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    loaded = yaml.safe_load(text)
    (job,) = loaded["spec"]["replicatedJobs"]
    return loaded, job


@pytest.mark.parametrize(
    "words",
    [
        ("--tpu=v5p", "--topology=2x2x2"),
        ("--tpu=v5e", "--topology=4x8", "--slices=3", "--spot"),
        ("--gpu=nvidia-h100-80gb", "--nodes=4", "--gpus=8", "--spot"),
    ],
)
def test_job_set_has_the_fields_that_its_api_asks_for(words):
    """jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2, and batch/v1 Job."""
    loaded, job = job_set(*words)
    assert (loaded["apiVersion"], loaded["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(loaded["spec"]) <= {"failurePolicy", "replicatedJobs"}
    assert set(job) == {"name", "replicas", "template"}
    spec = job["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    assert spec["backoffLimit"] == 0  # the first pod that fails ends the job, and JobSet decides
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a podFailurePolicy asks for it
    (container,) = pod["containers"]
    # Kubernetes turns $$( into $(, and replaces $(NAME)
    assert container["command"][:-1] == ["python", "-m", "x"]
    assert container["command"][-1] == "--a=$$(b) 'c' \"d\": é"
    assert pod["nodeSelector"].get("cloud.google.com/gke-spot") == (
        "true" if "--spot" in words else None
    )


@pytest.mark.parametrize("words", [("--gpu=nvidia-h100-80gb",), ("--tpu=v5e", "--topology=4x4")])
def test_claim_is_mounted_where_the_help_says(words):
    _, job = job_set(*words, "--claim=disk")
    pod = job["template"]["spec"]["template"]["spec"]
    volume = pod["volumes"][-1]
    assert volume["persistentVolumeClaim"] == {"claimName": "disk"}
    mount = pod["containers"][0]["volumeMounts"][-1]
    assert mount == {"name": volume["name"], "mountPath": "/mnt/shared"}


def test_kinds_of_failure_are_distinguished():
    """A mistake ends the job, a stop or a preemption never counts, the rest counts.

    Kubernetes ends a Job's failure message with "matching FailJob rule at index N" (JobSet's
    proposal 262); JobSet takes its first rule that fits.
    """
    loaded, job = job_set("--tpu=v5p", "--topology=2x2x2", "--max-restarts=7")
    policy = loaded["spec"]["failurePolicy"]
    pod_rules = job["template"]["spec"]["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]

    def action(index):
        if index is None:
            reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        else:
            reason = "PodFailurePolicy"
            message = f"Container train failed matching FailJob rule at index {index}"
        for rule in policy["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            if reason in rule["onJobFailureReasons"] and any(
                re.search(p, message) for p in patterns
            ):
                return rule["action"]
        return "RestartJobSet"

    def rule_of(code):
        for index, rule in enumerate(pod_rules):
            codes = rule.get("onExitCodes", {"values": []})
            if code in codes["values"]:
                assert (rule["action"], codes["operator"]) == ("FailJob", "In")
                assert codes["containerName"] == container["name"]
                return index
        return None

    assert policy["maxRestarts"] == 7
    assert action(rule_of(2)) == "FailJobSet"  # a UserError: cli.run
    assert action(rule_of(143)) == "RestartJobSetAndIgnoreMaxRestarts"  # SIGTERM
    assert action(rule_of(3)) == "RestartJobSet"
    assert action(rule_of(137)) == "RestartJobSet"
    disrupted = {"type": "DisruptionTarget", "status": "True"}
    (index,) = [i for i, r in enumerate(pod_rules) if r.get("onPodConditions") == [disrupted]]
    assert action(index) == "RestartJobSetAndIgnoreMaxRestarts"


@pytest.mark.parametrize(
    ("words", "label", "hosts", "chips"),
    [
        (("--tpu=v5p", "--topology=2x2x1"), "tpu-v5p-slice", 1, 4),
        (("--tpu=v5p", "--topology=2x2x2"), "tpu-v5p-slice", 2, 4),
        (("--tpu=v5p", "--topology=4x4x4"), "tpu-v5p-slice", 16, 4),
        (("--tpu=v5e", "--topology=1x1"), "tpu-v5-lite-podslice", 1, 1),
        (("--tpu=v5e", "--topology=16x16"), "tpu-v5-lite-podslice", 64, 4),
        (("--tpu=v6e", "--topology=2x4", "--chips-per-host=8"), "tpu-v6e-slice", 1, 8),
    ],
)
def test_tpu_slices_have_as_many_hosts_as_google_says(words, label, hosts, chips):
    """cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus."""
    loaded, job = job_set(*words, "--slices=2")
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    assert spec["completions"] == hosts
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": words[1].split("=")[1],
    }
    exclusive = loaded["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert exclusive == "cloud.google.com/gke-nodepool"


def test_gpu_pods_find_pod_0():
    """A pod's name is JOBSET-JOB-JOBINDEX-PODINDEX, in the headless service named JOBSET."""
    loaded, job = job_set("--gpu=nvidia-h100-80gb", "--nodes=4", "--gpus=2")
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    variables = {e["name"]: e.get("value") or e["valueFrom"] for e in container["env"]}
    name = loaded["metadata"]["name"]
    assert variables["JAX_COORDINATOR_ADDRESS"] == f"{name}-{job['name']}-0-0.{name}:8476"
    assert variables["JAX_NUM_PROCESSES"] == str(spec["completions"]) == "4"
    path = variables["JAX_PROCESS_ID"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert job["replicas"] == 1


def test_image_is_made_of_what_there_is():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    kept = (ROOT / ".dockerignore").read_text().split()
    copied = [w for line in lines if line.startswith("COPY ") for w in line.split()[1:-1]]
    assert {"requirements.txt", "pyproject.toml", "ddm_jax", "configs", "launch"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in kept
    # what a build argument selects; docs/cloud.md gives one of them
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pages = "\n".join([*lines, (ROOT / "docs" / "cloud.md").read_text()])
    extras = set(re.findall(r"--build-arg EXTRA=(\w+)", pages))
    assert {"tpu", "gpu"} <= extras <= set(project["optional-dependencies"])


def test_pods_do_not_run_as_the_user_of_the_image():
    """Claims that GKE mounts belong to root."""
    assert [x for x in (ROOT / "Dockerfile").read_text().splitlines() if x.startswith("USER ")]
    for words in (("--gpu=nvidia-h100-80gb",), ("--tpu=v5e", "--topology=4x4")):
        pod = job_set(*words)[1]["template"]["spec"]["template"]["spec"]
        assert pod["securityContext"] == {"runAsUser": 0}
