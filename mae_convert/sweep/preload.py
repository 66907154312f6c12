"""Imports and tables that every job needs, made once in the process from which jobs are forked."""

import gc

import h5py  # noqa: F401  # a tenth of a second, for each job that writes it

import mae_convert.convert.execute
import mae_convert.formats.hdf5
import mae_convert.formats.hdf5_write
import mae_convert.formats.pth_read
import mae_convert.formats.pth_write
import mae_convert.formats.safetensors_file
import mae_convert.sweep.run_job
import mae_convert.verify.certificate
import mae_convert.verify.verification  # noqa: F401
from mae_convert.families import families
from mae_convert.files.strict_json import load_schemas

families()
load_schemas("config", "preprocessor", "conversion")
# Otherwise the first garbage collection of each job copies all memory of this process.
gc.collect()
gc.freeze()
