"""Experiments that find the cause of a failed verification, or values that no tensor specifies.

Hypotheses are tested before they are reported. ``diagnosis.diagnose`` is the entry point for a
failed verification. If the weights are available, hypotheses are applied to the model of one side,
which is run again in a child process; a hypothesis that removes the difference is reported as the
cause. ``candidates`` lists the hypotheses for a first difference, ``search`` tests them, and
``candidate_process`` starts the child. The child runs ``candidate_worker``, which uses
``candidate_run``, ``block_variants``, ``input_output_variants`` and ``weight_edits``; these import
only NumPy, safetensors and PyTorch. ``precision`` looks for parts computed in lower precision.
``tensor_differences`` compares the tensors of two checkpoints, and ``trace_differences`` compares
two traces without weights. Verification (``mae_convert.verify``) does not import this package.

``repair`` corrects the faults of a target with the changes that ``tensor_repairs`` finds for each
tensor, and verifies the result. ``reduce`` extracts the computation of the first result
that differs and writes a script from the template in ``reproducer``.

The package ``infer`` determines fields of the configuration that no tensor specifies, such as the
number of heads, by experiments with one checkpoint.
"""
