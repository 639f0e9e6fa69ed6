//! What a walk needs to know about a type, read once per type.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::mem::transmute;
use std::ptr;

use pyo3::ffi;
use rustc_hash::FxHashMap;

use crate::cpython::failure::Failure;
use crate::cpython::fallible_collections::try_boxed_array;

/// How a closure treats the instances of a type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Any other object: traversed.
    Plain,
    /// A dict, which may be the dict of a module.
    Dict,
    /// A module.
    Module,
    /// A type object, which may be a library's.
    Type,
}

#[derive(Clone, Copy)]
pub struct TypeFacts {
    pub traverse: Option<ffi::traverseproc>,
    /// Whether an instance takes part in garbage collection (static types do not).
    pub is_gc: Option<ffi::inquiry>,
    pub role: Role,
    /// The type is a heap type, such as a class statement makes, and no metaclass.
    pub heap_type: bool,
    /// An instance is a list.
    pub list: bool,
    /// The scan returns instances.
    pub scanned: bool,
    /// The closure reports instances.
    pub reported: bool,
    /// The references of instances are followed.
    pub container: bool,
    /// The type is a subtype of one in `container_bases`.
    pub derived: bool,
    /// Instances are calls or tasks that may be scheduled.
    pub scheduled: bool,
    /// An instance with external references keeps everything it reaches.
    pub kept_whole: bool,
    /// Instances are followed without counting a step.
    pub wrapper: bool,
    /// Instances have results by arguments.
    pub cache: bool,
}

/// The types that a walk treats specially.
#[derive(Default)]
pub struct TypesOfInterest {
    /// With subtypes: the scan returns their instances.
    pub scanned: Vec<*mut ffi::PyTypeObject>,
    /// With subtypes: the closure reports their instances.
    pub reported: Vec<*mut ffi::PyTypeObject>,
    /// Without subtypes: the references of their instances are followed.
    pub containers: Vec<*mut ffi::PyTypeObject>,
    /// With subtypes: their instances may be followed as well.
    pub container_bases: Vec<*mut ffi::PyTypeObject>,
    /// With subtypes: calls or tasks that may be scheduled.
    pub scheduled: Vec<*mut ffi::PyTypeObject>,
    /// With subtypes: their instances keep everything they reach, if they have external references.
    pub kept_whole: Vec<*mut ffi::PyTypeObject>,
    /// Without subtypes: their instances are followed without counting a step.
    pub wrappers: Vec<*mut ffi::PyTypeObject>,
    /// Without subtypes: their instances have results by arguments.
    pub caches: Vec<*mut ffi::PyTypeObject>,
}

impl TypeFacts {
    const NONE: Self = Self {
        traverse: None,
        is_gc: None,
        role: Role::Plain,
        heap_type: false,
        list: false,
        scanned: false,
        reported: false,
        container: false,
        derived: false,
        scheduled: false,
        kept_whole: false,
        wrapper: false,
        cache: false,
    };

    /// Instances refer to nothing, and are not reported.
    #[inline]
    pub fn is_leaf(&self) -> bool {
        self.traverse.is_none() && !self.reported
    }
}

#[derive(Clone, Copy)]
struct Slot {
    of: *mut ffi::PyTypeObject,
    facts: TypeFacts,
}

const FRONT: usize = 512;

/// Facts by type pointer, for the length of one walk: a type may be freed after it.
///
/// Most objects of a heap have one of a few types, so a small direct-mapped cache is looked up before the hash map.
pub struct TypeTable {
    front: Box<[Slot; FRONT]>,
    all: FxHashMap<usize, TypeFacts>,
    of_interest: TypesOfInterest,
}

impl TypeTable {
    /// Fails if there is not enough memory.
    pub fn new(of_interest: TypesOfInterest) -> Result<Self, Failure> {
        Ok(Self {
            front: try_boxed_array(Slot {
                of: ptr::null_mut(),
                facts: TypeFacts::NONE,
            })?,
            all: FxHashMap::default(),
            of_interest,
        })
    }

    /// The facts of an object's C type.
    ///
    /// # Safety
    /// `object` is live and the thread is attached.
    #[inline(always)]
    pub unsafe fn of(&mut self, object: *mut ffi::PyObject) -> TypeFacts {
        // SAFETY: `object` is live. This reads the C type, and not `__class__`.
        let of = unsafe { ffi::Py_TYPE(object) };
        // Type objects are at least 16-byte aligned.
        let slot = &self.front[(of as usize >> 4) % FRONT];
        if slot.of == of {
            return slot.facts;
        }
        // SAFETY: the type of a live object is live.
        unsafe { self.look_up(of) }
    }

    /// # Safety
    /// `of` is a live type and the thread is attached.
    #[cold]
    unsafe fn look_up(&mut self, of: *mut ffi::PyTypeObject) -> TypeFacts {
        let known = self.all.get(&(of as usize)).copied();
        // SAFETY: by this function's contract.
        let facts = known.unwrap_or_else(|| unsafe { read_facts(of, &self.of_interest) });
        // Without memory to remember them, the facts are read again.
        if known.is_none() && self.all.try_reserve(1).is_ok() {
            self.all.insert(of as usize, facts);
        }
        self.front[(of as usize >> 4) % FRONT] = Slot { of, facts };
        facts
    }
}

/// # Safety
/// `of` is a live type and the thread is attached.
unsafe fn read_facts(of: *mut ffi::PyTypeObject, of_interest: &TypesOfInterest) -> TypeFacts {
    // SAFETY: PyType_IsSubtype walks the MRO of two live types; no `__subclasscheck__` is run.
    let is = |base| unsafe { ffi::PyType_IsSubtype(of, base) } != 0;
    // SAFETY: a live type, as the contract says.
    let flags = unsafe { ffi::PyType_GetFlags(of) };
    // SAFETY: both slots are listed in the stable ABI, and PyType_GetSlot takes static types from
    // 3.10 on. A null slot becomes `None`; a filled one has the type named by its slot id.
    let (traverse, is_gc) = unsafe {
        (
            transmute::<*mut c_void, Option<ffi::traverseproc>>(ffi::PyType_GetSlot(
                of,
                ffi::Py_tp_traverse,
            )),
            transmute::<*mut c_void, Option<ffi::inquiry>>(ffi::PyType_GetSlot(
                of,
                ffi::Py_tp_is_gc,
            )),
        )
    };
    let role = if is(&raw mut ffi::PyType_Type) {
        Role::Type
    } else if is(&raw mut ffi::PyModule_Type) {
        Role::Module
    } else if is(&raw mut ffi::PyDict_Type) {
        Role::Dict
    } else {
        Role::Plain
    };
    TypeFacts {
        traverse: traverse.filter(|_| flags & ffi::Py_TPFLAGS_HAVE_GC != 0),
        is_gc,
        role,
        heap_type: flags & ffi::Py_TPFLAGS_HEAPTYPE != 0 && role != Role::Type,
        list: flags & ffi::Py_TPFLAGS_LIST_SUBCLASS != 0,
        scanned: of_interest.scanned.iter().any(|&base| is(base)),
        reported: of_interest.reported.iter().any(|&base| is(base)),
        container: of_interest.containers.contains(&of),
        derived: of_interest.container_bases.iter().any(|&base| is(base)),
        scheduled: of_interest.scheduled.iter().any(|&base| is(base)),
        kept_whole: of_interest.kept_whole.iter().any(|&base| is(base)),
        wrapper: of_interest.wrappers.contains(&of),
        cache: of_interest.caches.contains(&of),
    }
}

/// Calls `each` with every referent of an object: those that its tp_traverse shows, or else embedded values.
///
/// # Safety
/// As for `each_traversed`, and `each` changes no object.
pub unsafe fn each_referent<F>(
    object: *mut ffi::PyObject,
    traverse: ffi::traverseproc,
    mut each: F,
) -> Result<(), Failure>
where
    F: FnMut(*mut ffi::PyObject) -> Result<(), Failure>,
{
    // SAFETY: by this function's contract.
    unsafe {
        if each_traversed(object, traverse, &mut each)? {
            return Ok(());
        }
        each_embedded_value(object, each)
    }
}

/// Calls `each` with every referent that an object's tp_traverse shows. Returns whether there was one.
///
/// # Safety
/// `object` is live and of the type that `traverse` is of, the thread is attached, and `each` runs no
/// Python code and does not panic.
#[inline]
pub unsafe fn each_traversed<F>(
    object: *mut ffi::PyObject,
    traverse: ffi::traverseproc,
    each: F,
) -> Result<bool, Failure>
where
    F: FnMut(*mut ffi::PyObject) -> Result<(), Failure>,
{
    struct Referents<F> {
        each: F,
        any_traversed: bool,
        outcome: Result<(), Failure>,
    }
    /// # Safety
    /// `referents` points to the live `Referents<F>` that the traversal below was given.
    unsafe extern "C" fn visit<F: FnMut(*mut ffi::PyObject) -> Result<(), Failure>>(
        referent: *mut ffi::PyObject,
        referents: *mut c_void,
    ) -> c_int {
        // SAFETY: by this function's contract; nothing else uses it meanwhile.
        let referents = unsafe { &mut *referents.cast::<Referents<F>>() };
        referents.any_traversed = true;
        referents.outcome = (referents.each)(referent);
        c_int::from(referents.outcome.is_err())
    }
    let mut referents = Referents {
        each,
        any_traversed: false,
        outcome: Ok(()),
    };
    // SAFETY: by this function's contract.
    unsafe { traverse(object, visit::<F>, (&raw mut referents).cast()) };
    referents.outcome?;
    Ok(referents.any_traversed)
}

/// Calls `each` with the values of a dict whose `tp_traverse` has shown nothing.
///
/// From CPython 3.13 on the values of an instance's `__dict__` may be embedded in the instance. Then only the tp_traverse
/// of the instance shows them (`dict_traverse` in Objects/dictobject.c: `embedded`).
///
/// # Safety
/// `object` is live, the thread is attached, and `each` runs no Python code and changes no dict.
#[inline]
pub unsafe fn each_embedded_value(
    object: *mut ffi::PyObject,
    mut each: impl FnMut(*mut ffi::PyObject) -> Result<(), Failure>,
) -> Result<(), Failure> {
    // SAFETY: by this function's contract; such a dict is an exact one.
    unsafe {
        if ffi::PyDict_CheckExact(object) == 0 {
            return Ok(());
        }
        each_item(object, |_, value| each(value))
    }
}

/// Calls `each` with every key and value of a dict.
///
/// # Safety
/// `dict` is a live dict, and `each` runs no Python code and changes no dict.
pub unsafe fn each_item(
    dict: *mut ffi::PyObject,
    mut each: impl FnMut(*mut ffi::PyObject, *mut ffi::PyObject) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut position, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
    // SAFETY: by this function's contract.
    while unsafe { ffi::PyDict_Next(dict, &raw mut position, &raw mut key, &raw mut value) } != 0 {
        each(key, value)?;
    }
    Ok(())
}
