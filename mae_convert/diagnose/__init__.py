"""Why a verification failed: hypotheses, each tested before it is reported.

``diagnosis.diagnose`` is the entry. Where the weights are available, a hypothesis is applied to one
side, the model is run again in a child process, and what makes the difference vanish is the cause:
``candidates`` lists the hypotheses for a first difference, ``search`` tries them,
``candidate_process`` starts the child. The child runs ``candidate_worker`` and imports
``candidate_run``, ``block_variants``, ``input_output_variants`` and ``weight_edits``, and with them
only NumPy, safetensors and PyTorch. ``precision`` looks for parts computed in lower precision.
``tensor_differences`` compares the tensors themselves, and ``trace_differences`` two traces without
any weights. Verification (``mae_convert.verify``) does not import this package.

``repair`` undoes what is wrong with a target, by ``tensor_cures`` for each tensor, and verifies the
result. ``reduce`` shows the first difference alone: one step, with the script of ``reproducer``.
"""
