"""`keys export-worker`: what it writes, and that no command of a test takes the file."""

from datetime import UTC, datetime, timedelta

from provenance.keys.worker import load_worker


def test_the_command_writes_the_file_and_no_test_takes_it(run, keyring_folder, tmp_path):
    file, value = tmp_path / "worker.key", ("--value", "week=2026-W17", "--value", "week=2026-W18")
    code, out, err = run("keys", "export-worker", keyring_folder, *value, "-o", file)
    assert (code, out) == (0, "")
    assert "until" in err
    worker = load_worker(file)
    assert {name.value for name in worker.keys} == {"", "2026-W17", "2026-W18"}
    assert timedelta(days=13) < worker.expires - datetime.now(UTC) <= timedelta(days=14)
    code, _, _ = run("keys", "export-worker", keyring_folder, "--days", "1", "-o", file)
    assert code == 0
    assert load_worker(file).expires - datetime.now(UTC) <= timedelta(days=1)
    for words, expected in (
        (("keys", "export-worker", keyring_folder, "--value", "week=W", "-o", file), 78),
        (("keys", "export-worker", keyring_folder, "--value", "week", "-o", file), 2),
        (("keys", "export-worker", keyring_folder, "--days", "0", "-o", file), 2),
        (("keys", "export-worker", keyring_folder, "-o", keyring_folder / "master.key"), 74),
        (("keys", "show", file), 74),
        (("detect", file, "--keys", file), 74),
        (("index", "build", file, "--keys", file, "-o", tmp_path / "i"), 74),
        (("check", file, "--keys", file, "--index", tmp_path), 74),
    ):
        code, _, err = run(*words)
        assert code == expected, (words, err)
