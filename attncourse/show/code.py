"""The package's own source, shown in a chapter."""

import inspect
from collections.abc import Callable
from html import escape
from pathlib import Path
from types import ModuleType

import attncourse
from attncourse.show.html import Output, fragment, scroll

PACKAGE = Path(attncourse.__file__).parent


def source(obj: ModuleType | type | Callable) -> Output:
    """The source of a module, class or function of the package, with its file's name.

    Raises ValueError for anything that is not part of the package: a chapter shows the code that runs.
    """
    target = inspect.unwrap(obj) if callable(obj) else obj
    try:
        path = Path(inspect.getsourcefile(target)).resolve()
        lines = inspect.getsource(target).rstrip() + "\n"
    except (TypeError, OSError) as error:
        raise ValueError(f"there is no source to show for {obj!r}; give a module, class or function") from error
    if not path.is_relative_to(PACKAGE.resolve()):
        raise ValueError(f"{obj!r} comes from {path}, which is not in the package attncourse")
    name = path.relative_to(PACKAGE.resolve().parent).as_posix()
    caption, label = f"<code>{escape(name)}</code>", f"Source of {name}"
    if not inspect.ismodule(target):
        caption += f" · <code>{escape(target.__qualname__)}</code>"
        label += f", {target.__qualname__}"  # a page's regions need names of their own
    code = scroll(f"<pre><code>{highlight(lines)}</code></pre>", label)
    return Output(lines, fragment(f"<figure><figcaption>{caption}</figcaption>{code}</figure>", kind="source"))


def highlight(lines: str) -> str:
    """Python as HTML, in six classes of token (pygments has a hundred; six read better and weigh less)."""
    from pygments.lexers import PythonLexer
    from pygments.token import Comment, Keyword, Name, Number, Operator, String

    classes = (
        (Comment, "c"),
        (String, "s"),
        (Number, "m"),
        (Keyword, "k"),
        (Operator.Word, "k"),
        (Name.Function, "f"),
        (Name.Class, "f"),
        (Name.Decorator, "b"),
        (Name.Builtin, "b"),
    )
    parts: list[list[str]] = []
    for token, text in PythonLexer(stripnl=False).get_tokens(lines):
        kind = next((letter for group, letter in classes if token in group), "")
        if parts and (parts[-1][0] == kind or text.isspace()):
            parts[-1][1] += text
        else:
            parts.append([kind, text])
    return "".join(f'<span class="ac-{kind}">{escape(text)}</span>' if kind else escape(text) for kind, text in parts)
