import sys

from attncourse.cli import main

sys.exit(main())
