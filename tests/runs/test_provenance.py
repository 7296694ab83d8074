"""The fingerprint of the code, by which the hosts of a run are compared."""

from framework.runs.provenance import code_fingerprint


def test_the_fingerprint_of_code_covers_only_names_and_contents_of_python_files(tmp_path):
    seen = []
    for name, text in (("a.py", "x = 1\n"), ("a.py", "x = 2\n"), ("room/b.py", "x = 2\n"), ("notes.txt", "any")):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        seen.append(code_fingerprint(tmp_path))
    assert len(set(seen[:3])) == 3
    assert seen[3] == seen[2]
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    assert code_fingerprint(tmp_path) != seen[3]
