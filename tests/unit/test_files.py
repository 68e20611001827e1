"""Files for servers, read from the project's folders."""

from pathlib import Path

from components.files import ServerFile, read_tree


def test_what_python_compiled_beside_a_module_goes_to_no_server(tmp_path: Path) -> None:
    module = tmp_path / "usr/local/lib/uds/module.py"
    compiled = module.parent / "__pycache__/module.cpython-313.pyc"
    compiled.parent.mkdir(parents=True)
    module.write_text("pass\n")
    compiled.write_bytes(b"\xa7\r\r\n")
    assert read_tree(tmp_path, {}) == [ServerFile("/usr/local/lib/uds/module.py", 0o644, "pass\n")]
