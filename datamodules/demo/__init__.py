"""Writers of small, learnable data sets in the real on-disk formats: for recipes, tests and first steps.

The same arguments write the same files.
"""

from datamodules.demo.cifar import write_cifar as write_cifar
from datamodules.demo.faces import write_faces as write_faces
from datamodules.demo.imagenet import write_imagenet as write_imagenet
from datamodules.demo.people import write_duke_mtmc as write_duke_mtmc, write_market1501 as write_market1501
from datamodules.demo.places365 import write_places365 as write_places365
from datamodules.demo.refcoco import write_refcoco as write_refcoco
from datamodules.demo.tracking import write_tracking as write_tracking
from datamodules.demo.wider_face import write_wider_face as write_wider_face

__all__ = [
    "write_cifar",
    "write_duke_mtmc",
    "write_faces",
    "write_imagenet",
    "write_market1501",
    "write_places365",
    "write_refcoco",
    "write_tracking",
    "write_wider_face",
]
