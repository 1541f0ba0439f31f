"""Controllers on training loops outside of hpenv: `attach(optimizer, controller, total_steps=...)`.

Importing this imports torch.
"""

from hpenv.deploy.attachment import Attachment, attach
from hpenv.deploy.pilot import ControllerWarning, Decision
from hpenv.deploy.rails import Rails

__all__ = ["Attachment", "ControllerWarning", "Decision", "Rails", "attach"]
