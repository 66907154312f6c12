"""Why two sides differ: hypotheses, each tested before it is said.

Where weights are at hand, a hypothesis is applied to one side, the model is run again in a child
process, and what makes the difference vanish is the cause (``reproduction``). The child imports
``laboratory``, ``walk``, ``alternatives`` and ``edits``, and with them only NumPy, safetensors and
PyTorch. Of two traces alone, ``signs`` says what they show.
"""
