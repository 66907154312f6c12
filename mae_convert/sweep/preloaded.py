"""What every job needs: loaded once, in the process that all jobs' processes are forked from."""

import mae_convert.convert
import mae_convert.sweep.job
import mae_convert.verify.certificate
import mae_convert.verify.verification  # noqa: F401
