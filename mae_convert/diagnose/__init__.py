"""Experiments with models: why a verification failed, and what no tensor specifies.

Hypotheses are tested before they are reported. ``diagnosis.diagnose`` is the entry point for a
failed verification. If the weights are available, a hypothesis is applied to one side and the model
is run again in a child process; a hypothesis that removes the difference is the cause:
``candidates`` lists the hypotheses for a first difference, ``search`` tries them,
``candidate_process`` starts the child. The child runs ``candidate_worker`` and imports
``candidate_run``, ``block_variants``, ``input_output_variants`` and ``weight_edits``, and with them
only NumPy, safetensors and PyTorch. ``precision`` looks for parts computed in lower precision.
``tensor_differences`` compares the tensors themselves, and ``trace_differences`` two traces without
any weights. Verification (``mae_convert.verify``) does not import this package.

``repair`` corrects the faults of a target, with ``tensor_cures`` for each tensor, and verifies the
result. ``reduce`` extracts the step of the first difference and writes the script in
``reproducer``.

The package ``infer`` determines fields of the configuration that no tensor specifies, such as the
number of heads, by experiments with one checkpoint.
"""
