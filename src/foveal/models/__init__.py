"""One file per model family. Importing this package registers them all."""

from . import efficientvit as efficientvit
from . import efficientvit_sr as efficientvit_sr
from . import realtime_sr as realtime_sr
