"""Picture files of which those that cannot be read may be left out, with all processes knowing which."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from lit_methods.functional.pictures import BadImageError


class SkippedFiles:
    """The files of a data set, and which of them could not be read.

    Args:
        folder: holds the files.
        files: their paths in it.
        skip: go on without a picture that cannot be read.

    Example:
        >>> files = SkippedFiles(Path("faces"), ["a.jpg", "b.jpg"], skip=True)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     files.leave_out(1, BadImageError("it is cut off"))
        >>> files.bad_files()
        ['faces/b.jpg']
    """

    cure: ClassVar[str] = "Replace"  # what else can be done about a file

    def __init__(self, folder: Path, files: Sequence[str], skip: bool = False) -> None:
        self.folder, self.skip = folder, skip
        # One array rather than many strings: workers would copy those, page by page, as they count references.
        self.files = np.array([os.fsencode(file) for file in files], dtype=np.bytes_)
        self.bad = torch.zeros(len(self.files), dtype=torch.bool)
        if skip:
            self.bad.share_memory_()  # workers mark here, the main process reads

    def path(self, row: int) -> Path:
        """The file of a row."""
        return self.folder / os.fsdecode(self.files[row])

    def bad_files(self) -> list[str]:
        """Files that this process or its workers could not read so far."""
        return [str(self.path(row)) for row in torch.nonzero(self.bad).flatten().tolist()]

    def leave_out(self, row: int, error: BadImageError) -> None:
        """Go on without a picture; the first time with a warning.

        Args:
            row: number of the file.
            error: what is wrong with it.

        Raises:
            BadImageError: files are not skipped.
        """
        if not self.skip:
            raise BadImageError(f'{error}. {self.cure} the file, or set on_bad_image="skip".') from error
        if not self.bad[row]:
            self.bad[row] = True
            warnings.warn(f"skipped: {error}", stacklevel=2)
