"""The course's package as a wheel, with everything that it needs and nothing else."""

import sys
import zipfile
from pathlib import Path

from attncourse.grading import bundle

ROOT = Path(__file__).resolve().parent.parent


def build_wheel(folder: Path) -> Path:
    """Build the wheel in `folder`, and hold its files against attncourse/: exits when one is missing or in excess."""
    wheel = bundle.build_wheel(ROOT, folder)
    files = {path for path in (ROOT / "attncourse").rglob("*") if path.is_file()}
    wanted = {path.relative_to(ROOT).as_posix() for path in files if path.parent.name != "__pycache__"}
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if inside != wanted:
        sys.exit(f"the wheel lacks {sorted(wanted - inside)}, and has in excess {sorted(inside - wanted)}")
    print(f"{wheel.name}: {len(inside)} files, {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
    return wheel
