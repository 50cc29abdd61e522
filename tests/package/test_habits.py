"""The configuration of commit hooks and of hosted test machines calls only what exists."""

from __future__ import annotations

import os
import re
import shlex

import pytest
from cases import ROOT

yaml = pytest.importorskip("yaml")


def test_hooks_before_a_commit_call_what_exists():
    (own,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    targets = (ROOT / "Makefile").read_text()
    assert own["repo"] == "local"
    for hook in own["hooks"]:
        program, *words = shlex.split(hook["entry"])
        if program == "make":
            assert f"\n{words[0]}: " in targets, hook["id"]
        else:
            assert program == ".venv/bin/python", hook["id"]
            assert "--check" in (ROOT / words[0]).read_text(), hook["id"]


def test_a_hosted_machine_runs_the_projects_own_checks():
    found = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())
    job = found["jobs"]["checks"]
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    for version in job["strategy"]["matrix"]["python"]:
        assert (ROOT / ".ci" / f"lock-{version}-x86_64.txt").exists()


def test_the_site_is_published_from_where_make_docs_writes_it():
    found = yaml.safe_load((ROOT / ".github/workflows/docs.yml").read_text())
    steps = found["jobs"]["site"]["steps"]
    assert {"run": "make docs"} in steps
    (upload,) = (step["with"]["path"] for step in steps if step.get("uses", "").startswith("actions/upload-pages"))
    (rule,) = re.findall(r"^docs:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert f" docs {upload}\n" in rule


def test_few_tables_keep_a_form_of_their_own():
    folders = ["aristos", "bench", "docs", "examples", "kernel_cache", "launch", "packaging", "ptxsim", "tests", ".ci"]
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    kept = [str(file.relative_to(ROOT)) for file in files for _ in re.findall(r"# fmt: skip$", file.read_text(), re.M)]
    assert 0 < len(kept) < 100, kept
