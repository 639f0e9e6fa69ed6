//! What is held from where the collector cannot look: running code, C code, objects outside the gc.
//!
//! The locals of a running function and the values on its stack are references that no `tp_traverse`
//! shows. So this does the arithmetic of the cyclic collector (`subtract_refs` in Modules/gcmodule.c):
//! the references that tracked objects hold are taken off the reference count, and what is left comes
//! from outside. It is done for a few objects only, the candidates and the plain containers around them.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::{mem, ptr};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::gc::{Failure, Stream};
use crate::idset::Addresses;
use crate::objects::{ask, caller_of, pair, types_in};
use crate::prefetch::{prefetch, prefetch_contents};
use crate::room::{try_add, try_collect, try_entry, try_extend, try_push, try_table};
use crate::types::{TypeTable, Wanted, each_unshown};

/// How to look for what is held from outside.
#[pyclass(module = "fastpurge._core", frozen)]
pub struct Outside {
    containers: Option<Py<PyTuple>>,
    container_bases: Option<Py<PyTuple>>,
    whole: Option<Py<PyTuple>>,
    executing: Option<Py<PyTuple>>,
    scheduled: Vec<(Py<PyType>, Option<Py<PyAny>>)>,
    // References that the collector cannot see: with them these are held from outside.
    at_work: Vec<Py<PyAny>>,
}

#[pymethods]
impl Outside {
    /// ``containers`` are looked through, by exact type, and ``container_bases`` with their subtypes.
    /// Instances of ``whole`` that are held keep everything they reach. ``executing`` are the types
    /// (generators and the like) whose frame is their own, each with the attribute that says that it
    /// runs now. ``scheduled`` are containers that count as held, with their subtypes: each with a function
    /// in C that says of one whether it is done, and counts no more, or without. ``at_work`` are objects
    /// that count as held.
    #[new]
    #[pyo3(signature = (*, containers=None, container_bases=None, whole=None, executing=None, scheduled=None, at_work=None))]
    fn new(
        containers: Option<Bound<'_, PyTuple>>,
        container_bases: Option<Bound<'_, PyTuple>>,
        whole: Option<Bound<'_, PyTuple>>,
        executing: Option<Bound<'_, PyTuple>>,
        scheduled: Option<Bound<'_, PyTuple>>,
        at_work: Option<Bound<'_, PyTuple>>,
    ) -> PyResult<Self> {
        let mut outside = Self {
            containers: containers.map(Bound::unbind),
            container_bases: container_bases.map(Bound::unbind),
            whole: whole.map(Bound::unbind),
            executing: executing.map(Bound::unbind),
            scheduled: Vec::new(),
            at_work: Vec::new(),
        };
        for each in scheduled.iter().flatten() {
            let [of, done] = pair(&each)?;
            let done = (!done.is_none()).then(|| done.unbind());
            try_push(
                &mut outside.scheduled,
                (of.cast_into::<PyType>()?.unbind(), done),
            )?;
        }
        for object in at_work.iter().flatten() {
            try_push(&mut outside.at_work, object.unbind())?;
        }
        Ok(outside)
    }
}

impl Outside {
    /// The types whose held instances keep everything they reach.
    pub fn whole(&self, py: Python<'_>) -> PyResult<Vec<*mut ffi::PyTypeObject>> {
        pointers(py, self.whole.as_ref())
    }

    /// Begins to count. What is expected, suspects and containers around them, is counted along in the
    /// first walk over the heap, whatever that is for.
    pub fn census<'a>(&'a self, py: Python<'_>, accounted: Accounted<'a>) -> PyResult<Census<'a>> {
        let executing = self.executing.as_ref().map(|pairs| pairs.bind(py));
        let mut census = Census {
            outside: self,
            types: TypeTable::new(Wanted {
                containers: pointers(py, self.containers.as_ref())?,
                container_bases: pointers(py, self.container_bases.as_ref())?,
                ..Wanted::default()
            })?,
            nodes: FxHashMap::default(),
            sieve: Sieve(try_table(0)?),
            round: 1,
            executing: executing_types(executing)?,
            accounted,
            holder: ptr::null_mut(),
            shown: false,
            batch: Vec::new(),
            found: Vec::new(),
            confirmed: Vec::new(),
            outcome: Ok(()),
        };
        for &address in accounted.expected {
            let node = try_entry(&mut census.nodes, address)?;
            (node.round, node.is_rumour) = (1, true);
            census.sieve.add(address);
        }
        Ok(census)
    }
}

impl Outside {
    /// Whether an object waits to go on, or to be called.
    ///
    /// # Safety
    /// `target` is live and the thread is attached.
    unsafe fn is_scheduled(&self, target: *mut ffi::PyObject) -> bool {
        self.scheduled.iter().any(|(of, done)| {
            // SAFETY: by this function's contract; `done` is a function in C, which lets nothing else run.
            unsafe {
                if ffi::PyObject_TypeCheck(target, of.as_ptr().cast()) == 0 {
                    return false;
                }
                let Some(done) = done else {
                    return true;
                };
                let end = ptr::null_mut::<ffi::PyObject>();
                let answer = ffi::PyObject_CallFunctionObjArgs(done.as_ptr(), target, end);
                if answer.is_null() {
                    ffi::PyErr_Clear();
                    return true;
                }
                ffi::Py_DECREF(answer);
                answer != ffi::Py_True()
            }
        })
    }
}

/// What is held from outside, and the containers that were met on the way.
pub struct Held {
    pub suspects: Vec<*mut ffi::PyObject>,
    pub holders: Vec<usize>,
}

fn pointers(py: Python<'_>, types: Option<&Py<PyTuple>>) -> PyResult<Vec<*mut ffi::PyTypeObject>> {
    types_in(types.map(|types| types.bind(py)))
}

/// References whose holders are known without a look, or are not to be looked through.
#[derive(Clone, Copy)]
pub struct Accounted<'a> {
    /// The frames of running functions, as far as they are shown: what they hold is held from outside.
    pub frames: &'a Addresses,
    /// What holds one reference to itself.
    pub self_held: Option<&'a Addresses>,
    /// Lists of the caller's, which are not looked through either.
    pub lists: &'a [*mut ffi::PyObject],
    /// Addresses where an earlier look has met suspects, and containers around them. What is there now is
    /// found out by the walk.
    pub expected: &'a [usize],
}

#[derive(Default)]
struct Node {
    /// The round in which references to this object are counted.
    round: usize,
    /// References to this object that tracked objects hold.
    references: ffi::Py_ssize_t,
    /// References to this object that tracked objects hold and do not show.
    unshown: ffi::Py_ssize_t,
    /// For a container: the targets in it, one as often as it is in it.
    holds: Vec<usize>,
    /// Whether there is only an address so far, at which there may be nothing any more.
    is_rumour: bool,
}

/// How many objects are looked at together.
const BATCH: usize = 64;

/// A count of references, in rounds: each is a walk over the heap.
pub struct Census<'a> {
    outside: &'a Outside,
    types: TypeTable,
    nodes: FxHashMap<usize, Node>,
    /// Where the targets of this round may be: most references are to something else.
    sieve: Sieve,
    round: usize,
    executing: Vec<Executing>,
    accounted: Accounted<'a>,
    /// The container being traversed, or null if it is something else.
    holder: *mut ffi::PyObject,
    /// Whether the object being traversed has shown a referent.
    shown: bool,
    /// Objects on their way from memory.
    batch: Vec<*mut ffi::PyObject>,
    /// Containers of targets, met for the first time.
    found: Vec<*mut ffi::PyObject>,
    /// Containers that were only an address, and are there.
    confirmed: Vec<*mut ffi::PyObject>,
    outcome: Result<(), Failure>,
}

impl Census<'_> {
    /// Whether something was expected: then the first walk is to be a round.
    pub fn expects(&self) -> bool {
        !self.accounted.expected.is_empty()
    }

    /// Those of the suspects that are held from outside: themselves, or a plain container that holds
    /// them, through any number of plain containers. ``namespaces`` are those of modules, which are not
    /// looked through; and what is ``kept`` need not be.
    ///
    /// Each level of containers takes a walk over the heap, but for what was expected.
    ///
    /// The pointers must be live, and the garbage collector paused.
    pub fn holds(
        mut self,
        stream: &Stream<'_>,
        suspects: &[*mut ffi::PyObject],
        namespaces: &Addresses,
        kept: impl Fn(*mut ffi::PyObject) -> bool,
    ) -> PyResult<Held> {
        // SAFETY: what is in the batch was met since Python code ran last.
        unsafe { self.drain(namespaces) }?;
        self.leave_out(|container| namespaces.contains(container) || kept(container));
        let mut outside = Vec::new();
        let mut targets = mem::take(&mut self.confirmed);
        let mut fresh = Vec::new();
        for &suspect in suspects {
            let node = self.nodes.get(&(suspect as usize));
            let is_counted = node.is_some_and(|node| node.round == self.round);
            let whither = if is_counted { &mut targets } else { &mut fresh };
            try_push(whither, suspect)?;
        }
        self.sort_out(&targets, stream, &mut outside)?;
        targets = fresh;
        try_extend(&mut targets, mem::take(&mut self.found))?;
        while !targets.is_empty() {
            self.open(&targets)?;
            // SAFETY: the walk hands on live objects, and this thread is attached.
            stream.walk(|object| unsafe { self.feed(object, namespaces) })?;
            // SAFETY: as above.
            unsafe { self.drain(namespaces) }?;
            self.sort_out(&targets, stream, &mut outside)?;
            targets = mem::take(&mut self.found);
        }
        Ok(Held {
            suspects: self.beneath(outside, suspects)?,
            holders: self.holders()?,
        })
    }

    /// Adds those targets of this round that are held.
    fn sort_out(
        &self,
        targets: &[*mut ffi::PyObject],
        stream: &Stream<'_>,
        outside: &mut Vec<*mut ffi::PyObject>,
    ) -> Result<(), Failure> {
        // SAFETY: nothing has been let go since the targets were met.
        let held = |target: &&*mut ffi::PyObject| unsafe {
            self.is_held(**target, stream.references()) || self.outside.is_scheduled(**target)
        };
        try_extend(outside, targets.iter().filter(held).copied())
    }

    /// Leaves out containers that the first walk has met although they are of no interest.
    fn leave_out(&mut self, of_no_interest: impl Fn(*mut ffi::PyObject) -> bool) {
        for containers in [&mut self.found, &mut self.confirmed] {
            containers.retain(|&container| !of_no_interest(container));
        }
        for (&address, node) in &mut self.nodes {
            if !node.holds.is_empty() && of_no_interest(address as *mut ffi::PyObject) {
                node.holds.clear();
            }
        }
    }

    /// Starts a round, in which the references to these are counted.
    fn open(&mut self, targets: &[*mut ffi::PyObject]) -> Result<(), Failure> {
        self.round += 1;
        for &target in targets {
            try_entry(&mut self.nodes, target as usize)?.round = self.round;
            self.sieve.add(target as usize);
        }
        Ok(())
    }

    /// Whether more references to a target of this round exist than were counted, and than the stream has.
    ///
    /// # Safety
    /// `target` is live.
    unsafe fn is_held(&self, target: *mut ffi::PyObject, streams: ffi::Py_ssize_t) -> bool {
        let own = self.accounted.self_held;
        let own = own.is_some_and(|known| known.contains(target));
        let node = &self.nodes[&(target as usize)];
        let known = node.references + node.unshown + ffi::Py_ssize_t::from(own) + streams;
        // SAFETY: by this function's contract.
        unsafe { ffi::Py_REFCNT(target) > known }
    }

    /// Takes an object, once some more are on their way.
    ///
    /// # Safety
    /// `object` is live and the thread is attached.
    #[inline]
    pub unsafe fn feed(
        &mut self,
        object: *mut ffi::PyObject,
        namespaces: &Addresses,
    ) -> Result<(), Failure> {
        prefetch(object);
        try_push(&mut self.batch, object)?;
        if self.batch.len() < BATCH {
            return Ok(());
        }
        // SAFETY: no Python code has run since each was met.
        unsafe { self.drain(namespaces) }
    }

    /// # Safety
    /// The objects of the batch are live and the thread is attached.
    unsafe fn drain(&mut self, namespaces: &Addresses) -> Result<(), Failure> {
        let mut batch = mem::take(&mut self.batch);
        for &object in &batch {
            // SAFETY: by this function's contract.
            unsafe { prefetch_contents(object) };
        }
        for &object in &batch {
            // SAFETY: by this function's contract.
            unsafe { self.take(object, namespaces)? };
        }
        batch.clear();
        self.batch = batch;
        Ok(())
    }

    /// Counts the references that one object holds.
    ///
    /// # Safety
    /// `object` is live and the thread is attached.
    unsafe fn take(
        &mut self,
        object: *mut ffi::PyObject,
        namespaces: &Addresses,
    ) -> Result<(), Failure> {
        // SAFETY: by this function's contract.
        let facts = unsafe { self.types.of(object) };
        let Some(traverse) = facts.traverse else {
            return Ok(());
        };
        if self.accounted.frames.contains(object) {
            return Ok(());
        }
        // SAFETY: by this function's contract.
        if unsafe { executes(&self.executing, object) } {
            return Ok(());
        }
        let is_container = facts.container
            && !self.accounted.lists.contains(&object)
            && !namespaces.contains(object);
        if is_container && self.round == 1 {
            self.confirm(object)?;
        }
        self.holder = if is_container {
            object
        } else {
            ptr::null_mut()
        };
        self.shown = false;
        // SAFETY: a tracked object is one that its type's tp_traverse is for; `self` outlives the call.
        unsafe { traverse(object, visit, (&raw mut *self).cast()) };
        mem::replace(&mut self.outcome, Ok(()))?;
        if is_container && !self.shown {
            // SAFETY: by this function's contract. The object around these values shows and counts them;
            // but then it does not show this dict, which it refers to as well.
            unsafe { each_unshown(object, |value| self.link(value)) }?;
            if let Some(node) = self.nodes.get_mut(&(object as usize)) {
                node.unshown = 1;
            }
        }
        Ok(())
    }

    /// Notes that a container is where one was expected.
    fn confirm(&mut self, object: *mut ffi::PyObject) -> Result<(), Failure> {
        match self.nodes.get_mut(&(object as usize)) {
            Some(node) if node.is_rumour => {
                node.is_rumour = false;
                try_push(&mut self.confirmed, object)
            }
            _ => Ok(()),
        }
    }

    /// Counts one reference, and notes the container that holds it.
    #[inline]
    fn count(&mut self, referent: *mut ffi::PyObject) -> Result<(), Failure> {
        self.shown = true;
        if !self.sieve.lets_through(referent as usize) {
            return Ok(());
        }
        match self.nodes.get_mut(&(referent as usize)) {
            Some(node) if node.round == self.round => node.references += 1,
            _ => return Ok(()),
        }
        self.link(referent)
    }

    /// Notes the container that holds a target.
    fn link(&mut self, referent: *mut ffi::PyObject) -> Result<(), Failure> {
        let node = self.nodes.get(&(referent as usize));
        if self.holder.is_null()
            || self.holder == referent
            || node.is_none_or(|node| node.round != self.round)
        {
            return Ok(());
        }
        if !self.nodes.contains_key(&(self.holder as usize)) {
            try_push(&mut self.found, self.holder)?;
        }
        let holder = try_entry(&mut self.nodes, self.holder as usize)?;
        try_push(&mut holder.holds, referent as usize)
    }

    /// Where containers of suspects are.
    fn holders(&self) -> Result<Vec<usize>, Failure> {
        let holds = |(&at, node): (&usize, &Node)| (!node.holds.is_empty()).then_some(at);
        try_collect(self.nodes.iter().filter_map(holds))
    }

    /// The suspects among some objects and everything that these hold through containers.
    fn beneath(
        &self,
        outside: Vec<*mut ffi::PyObject>,
        suspects: &[*mut ffi::PyObject],
    ) -> Result<Vec<*mut ffi::PyObject>, Failure> {
        let mut reached = FxHashSet::default();
        let mut pending = try_collect(outside.into_iter().map(|at| at as usize))?;
        while let Some(at) = pending.pop() {
            if try_add(&mut reached, at)? {
                try_extend(&mut pending, self.nodes[&at].holds.iter().copied())?;
            }
        }
        let held = |at: &&*mut ffi::PyObject| reached.contains(&(**at as usize));
        try_collect(suspects.iter().filter(held).copied())
    }
}

/// A set that may hold more than was added: small enough to stay in the nearest cache, and asked before a hash map is.
struct Sieve(Box<[u64; SIEVE / 64]>);

const SIEVE: usize = 1 << 17;

impl Sieve {
    #[inline]
    fn place(address: usize) -> (usize, u64) {
        // Objects are 16 bytes apart at least; what lies in another page is to fall on other bits.
        let bit = ((address >> 4) ^ (address >> 20)) % SIEVE;
        (bit / 64, 1 << (bit % 64))
    }

    fn add(&mut self, address: usize) {
        let (word, bit) = Self::place(address);
        self.0[word] |= bit;
    }

    #[inline]
    fn lets_through(&self, address: usize) -> bool {
        let (word, bit) = Self::place(address);
        self.0[word] & bit != 0
    }
}

/// A type whose frame is its own, and the attribute that says that it runs now.
pub type Executing = (*mut ffi::PyTypeObject, *mut ffi::PyObject);

/// The types whose frame is their own, of pairs in a tuple, which holds them.
pub fn executing_types(pairs: Option<&Bound<'_, PyTuple>>) -> PyResult<Vec<Executing>> {
    let mut executing = Vec::new();
    for each in pairs.into_iter().flatten() {
        let [of, attribute] = pair(&each)?;
        let of = of.cast::<PyType>()?.as_type_ptr();
        try_push(&mut executing, (of, attribute.as_ptr()))?;
    }
    Ok(executing)
}

/// Whether an object is a generator that runs now. Its locals are those of running code, and unlike
/// a function's they are shown (`gen_traverse` in Objects/genobject.c does not ask for its state).
///
/// # Safety
/// `object` is live and the thread is attached.
#[inline]
pub unsafe fn executes(executing: &[Executing], object: *mut ffi::PyObject) -> bool {
    // SAFETY: by this function's contract.
    let of = unsafe { ffi::Py_TYPE(object) };
    let Some(&(_, attribute)) = executing.iter().find(|&&(known, _)| known == of) else {
        return false;
    };
    // SAFETY: a getter in C of a built-in type that cannot be subclassed; it gives True or False.
    unsafe {
        let runs = ffi::PyObject_GetAttr(object, attribute);
        if runs.is_null() {
            ffi::PyErr_Clear();
            return false;
        }
        ffi::Py_DECREF(runs);
        runs == ffi::Py_True()
    }
}

/// # Safety
/// `census` points to the live `Census` whose `take` called tp_traverse.
unsafe extern "C" fn visit(referent: *mut ffi::PyObject, census: *mut c_void) -> c_int {
    // SAFETY: by this function's contract; `take` touches nothing of it until tp_traverse returns.
    let census = unsafe { &mut *census.cast::<Census<'_>>() };
    let counted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| census.count(referent)));
    census.outcome = counted.unwrap_or_else(|panic| Err(Failure::Panic(panic)));
    c_int::from(census.outcome.is_err())
}

/// The frames of running functions, where `tp_traverse` shows their locals.
///
/// That is CPython 3.10: from 3.11 on a frame that runs shows nothing (`frame_traverse` in
/// Objects/frameobject.c), which is what is wanted.
pub fn running_frames(py: Python<'_>) -> PyResult<Addresses> {
    let mut frames = Addresses::default();
    if py.version_info() >= (3, 11) {
        return Ok(frames);
    }
    let threads = ask(py, c"sys", c"_current_frames")?;
    for (_, frame) in threads.cast_into::<PyDict>()? {
        let mut at = frame;
        while !at.is_none() {
            frames.insert(at.as_ptr())?;
            at = caller_of(&at)?;
        }
    }
    Ok(frames)
}
