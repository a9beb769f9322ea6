//! Names whose only purpose in a pickle is to run code when it is loaded.
//!
//! This program calls nothing from a pickle, so it needs no protection; but a file that attacks
//! other readers must not pass as a checkpoint. Names that honest checkpoints hold too (`getattr`
//! in pickled enums, `functools.partial`) are not listed: they stay opaque.

/// Top-level packages without any member that belongs in a checkpoint.
const PACKAGES: [&str; 29] = [
    "asyncio",
    "bdb",
    "cProfile",
    "code",
    "codeop",
    "commands",
    "ctypes",
    "ftplib",
    "http",
    "httplib",
    "importlib",
    "marshal",
    "nt",
    "os",
    "pdb",
    "pip",
    "posix",
    "pty",
    "pydoc",
    "requests",
    "runpy",
    "shutil",
    "smtplib",
    "socket",
    "subprocess",
    "sys",
    "timeit",
    "urllib",
    "webbrowser",
];

/// Functions that run, compile or import their arguments.
const FUNCTIONS: [(&str, &[&str]); 10] = [
    (
        "builtins",
        &[
            "eval",
            "exec",
            "execfile",
            "compile",
            "open",
            "apply",
            "input",
            "breakpoint",
            "__import__",
        ],
    ),
    (
        "__builtin__",
        &[
            "eval",
            "exec",
            "execfile",
            "compile",
            "open",
            "apply",
            "input",
            "file",
            "__import__",
        ],
    ),
    ("pickle", &["load", "loads", "Unpickler"]),
    ("_pickle", &["load", "loads", "Unpickler"]),
    ("dill", &["load", "loads"]),
    (
        "dill._dill",
        &[
            "_create_function",
            "_create_code",
            "_import_module",
            "_eval_repr",
        ],
    ),
    (
        "cloudpickle.cloudpickle",
        &[
            "_make_function",
            "_builtin_type",
            "subimport",
            "_make_skel_func",
        ],
    ),
    ("types", &["CodeType", "FunctionType"]),
    ("operator", &["methodcaller"]),
    ("torch", &["load"]),
];

/// Tells if `module.name` can only serve to run code.
pub(super) fn is_hostile(module: &str, name: &str) -> bool {
    let package = module.split('.').next().unwrap_or(module);
    let first = name.split('.').next().unwrap_or(name);
    PACKAGES.contains(&package)
        || FUNCTIONS
            .iter()
            .any(|(of, names)| *of == module && names.contains(&first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_run_code_are_known_through_dots_and_old_spellings() {
        for (module, name) in [
            ("os", "system"),
            ("os.path", "join"),
            ("posix", "system"),
            ("subprocess", "Popen"),
            ("builtins", "eval"),
            ("builtins", "exec.__call__"),
            ("__builtin__", "execfile"),
        ] {
            assert!(is_hostile(module, name), "{module}.{name}");
        }
    }

    #[test]
    fn names_of_honest_checkpoints_pass() {
        for (module, name) in [
            ("collections", "OrderedDict"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("builtins", "getattr"),
            ("builtins", "set"),
            ("functools", "partial"),
            ("osmosis.models", "Net"),
            ("argparse", "Namespace"),
        ] {
            assert!(!is_hostile(module, name), "{module}.{name}");
        }
    }
}
