"""One file per model family. Importing this package registers them all."""

from . import albert as albert
from . import edifice as edifice
from . import efficientnet as efficientnet
from . import efficientvit as efficientvit
from . import efficientvit_m as efficientvit_m
from . import efficientvit_sr as efficientvit_sr
from . import linformer as linformer
from . import mambavision as mambavision
from . import mobilenet as mobilenet
from . import realtime_sr as realtime_sr
from . import tinyvit as tinyvit
from . import vit as vit
