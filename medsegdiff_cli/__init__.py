"""msd: medical image segmentation with diffusion models, from the command line."""

import os

__version__ = "0.1.0"

# Before any library is imported: none of them may look for a hub or report who uses it.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
