"""Imports that every job needs, loaded once in the process from which jobs are forked."""

import h5py  # noqa: F401  # a tenth of a second, for each job that writes it

import mae_convert.convert.execute
import mae_convert.sweep.job
import mae_convert.verify.certificate
import mae_convert.verify.verification  # noqa: F401
