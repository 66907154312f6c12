"""Names that pickles in malicious files use to run code, and that no configuration needs.

A file that contains such a name is refused. Reading files with this package is safe without this
list, because nothing in a file is imported or called: the list identifies files that should not be
trusted at all. Other unsupported names are ignored if no weight needs them. The names
come from the lists of the scanners picklescan, fickling and modelscan.
"""

_NAMES = """
asyncio atexit bdb cProfile cgi cgitb codeop compileall commands.getoutput commands.getstatusoutput
ctypes dbm distutils.file_util distutils.spawn doctest ensurepip fileinput ftplib gc http.client
httplib idlelib imaplib imp lib2to3 linecache logging.config marshal modulefinder multiprocessing nt
nturl2path os pdb pickle pickletools pip pipes pkgutil popen2 poplib posix pty py_compile pyclbr
pydoc runpy shelve shutil site smtplib socket socketserver sqlite3 ssl subprocess sys telnetlib
turtledemo urllib urllib2 venv webbrowser xmlrpc zipapp zipimport _aix_support _bootsubprocess
_ctypes _frozen_importlib _frozen_importlib_external _imp _interpchannels _interpreters _osx_support
_pickle _posixsubprocess _pyrepl _socket _winapi _xxsubinterpreters

builtins.__import__ builtins.apply builtins.breakpoint builtins.compile builtins.delattr
builtins.eval builtins.exec builtins.execfile builtins.exit builtins.file builtins.filter
builtins.globals builtins.help builtins.input builtins.locals builtins.map builtins.open
builtins.quit builtins.reload builtins.setattr builtins.vars code.InteractiveConsole
code.InteractiveInterpreter code.compile_command code.interact importlib.__import__
importlib._bootstrap importlib._bootstrap_external importlib.import_module importlib.machinery
importlib.reload importlib.util inspect.getsource io.FileIO io.open io.open_code _io.FileIO _io.open
_io.open_code operator.methodcaller logging.FileHandler profile.Profile profile.run profile.runctx
tempfile test.support timeit.Timer timeit.main timeit.repeat timeit.timeit trace.Trace
types.CodeType types.FunctionType types.LambdaType types.ModuleType uuid._get_command_stdout
uuid._popen _operator.methodcaller _thread threading.Thread platform._syscmd_file
platform._syscmd_ver platform.popen signal.alarm signal.raise_signal signal.setitimer signal.signal

aiohttp cloudpickle dill httpx.get httpx.post ipykernel IPython joblib.load keras.models.load_model
keras.saving numpy.ctypeslib numpy.distutils numpy.f2py numpy.load numpy.lib._npyio_impl.load
numpy.lib.npyio.load numpy.testing pandas.eval pandas.io.pickle pandas.read_pickle
pkg_resources.run_script pydantic.utils.import_string requests.api requests.get requests.post
requests.request sympy.core.sympify.sympify tensorflow.io tensorflow.keras.models.load_model
tensorflow.load_library tensorflow.load_op_library tensorflow.py_function tensorflow.raw_ops

torch._dynamo.guards torch._inductor.codecache torch._utils._import_dotted_name torch.compile
torch.distributed.elastic torch.distributed.rpc torch.fx.experimental
torch.fx.graph_module.reduce_deploy_graph_module torch.hub torch.jit torch.load torch.package
torch.serialization.load torch.storage._load_from_bytes torch.utils._config_module
torch.utils.bottleneck torch.utils.collect_env torch.utils.cpp_extension torch.utils.data.datapipes
torch.utils.hipify torch.utils.model_zoo
"""

RUNS_CODE = frozenset(_NAMES.split())
"""Dotted names of modules, types and functions that can be used to run code."""


_ATTRIBUTES = """
builtins ctypes importlib marshal nt os pickle posix pty runpy shutil socket subprocess sys
"""

MODULES = frozenset(_ATTRIBUTES.split())
"""Modules with which code can be run; a pickle could also refer to them as attributes of other
modules that import them."""


def runs_code(module: str, name: str) -> bool:
    """Return whether the name of a type or function in a pickle can be used to run code.

    This is the case if the dotted name is in `RUNS_CODE` or inside a module in `RUNS_CODE`, or if
    `name` contains one of `MODULES` or an attribute such as `__globals__`.
    """
    parts = f"{module}.{name}".replace("__builtin__.", "builtins.").split(".")
    if any(".".join(parts[:count]) in RUNS_CODE for count in range(1, len(parts) + 1)):
        return True
    attributes = name.split(".")
    return any(part.lstrip("_") in MODULES or _is_special(part) for part in attributes)


def _is_special(attribute: str) -> bool:
    return attribute.startswith("__") and attribute.endswith("__")
