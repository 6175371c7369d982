import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_python_blocks_of_the_readme_run_as_they_stand():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks, "the README shows no example"
    exec(compile("\n".join(blocks), str(README), "exec"), {"__name__": "readme"})
