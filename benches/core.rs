//! The parts of the core, each compared with what it replaces or with the interpreter's own function.
//!
//! `make bench` runs it, in an embedded interpreter, as `make test` does the crate's own tests.
#![allow(unsafe_code)]

use std::hint::black_box;

use _core::graph::scan::{closure, scan};
use _core::heap::address_sets::Addresses;
use _core::heap::type_facts::{TypeTable, TypesOfInterest};
use _core::libraries::library_folders::Libraries;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple, PyType};
use rustc_hash::FxHashSet;

/// Instances of `Record`, dicts and lists, all in the list `heap` of the main module.
const HEAP: &std::ffi::CStr = c"
class Record:
    def __init__(self, number):
        self.values = [number]

heap = [(Record(i), {'k': [i]}, [i, i + 1]) for i in range(30_000)]
";

fn heap(py: Python<'_>) -> Bound<'_, PyDict> {
    let names = PyDict::new(py);
    py.run(HEAP, Some(&names), None).unwrap();
    names
}

fn pointers(py: Python<'_>, names: &Bound<'_, PyDict>) -> Vec<*mut ffi::PyObject> {
    let get_objects = py.import("gc").unwrap().getattr("get_objects").unwrap();
    let objects = get_objects.call0().unwrap().cast_into::<PyList>().unwrap();
    assert!(names.contains("heap").unwrap(), "keeps them alive");
    objects.iter().map(|object| object.as_ptr()).collect()
}

fn id_set(criterion: &mut Criterion) {
    Python::attach(|py| {
        let names = heap(py);
        let objects = pointers(py, &names);
        let mut group = criterion.benchmark_group("id set");
        group.throughput(Throughput::Elements(objects.len() as u64));
        group.bench_function("insert: bitmap", |bencher| {
            bencher.iter(|| {
                let mut set = Addresses::default();
                for &object in &objects {
                    set.insert(object).unwrap();
                }
                set.count()
            });
        });
        group.bench_function("insert: hash set", |bencher| {
            bencher.iter(|| objects.iter().copied().collect::<FxHashSet<_>>().len());
        });
        let mut bitmap = Addresses::default();
        for &object in objects.iter().step_by(2) {
            bitmap.insert(object).unwrap();
        }
        let hashed: FxHashSet<_> = objects.iter().copied().step_by(2).collect();
        group.bench_function("contains: bitmap", |bencher| {
            bencher.iter(|| objects.iter().filter(|&&at| bitmap.contains(at)).count());
        });
        group.bench_function("contains: hash set", |bencher| {
            bencher.iter(|| objects.iter().filter(|at| hashed.contains(*at)).count());
        });
    });
}

fn type_table(criterion: &mut Criterion) {
    Python::attach(|py| {
        let names = heap(py);
        let objects = pointers(py, &names);
        let record = names.get_item("Record").unwrap().unwrap();
        let record = record.cast_into::<PyType>().unwrap().as_type_ptr();
        let mut group = criterion.benchmark_group("type of each object");
        group.throughput(Throughput::Elements(objects.len() as u64));
        group.bench_function("type table", |bencher| {
            bencher.iter(|| {
                let mut table = TypeTable::new(TypesOfInterest {
                    scanned: vec![record],
                    ..TypesOfInterest::default()
                })
                .unwrap();
                // SAFETY: `names` keeps what was made here alive, and the interpreter the rest.
                let is_scanned = |&&at: &&*mut ffi::PyObject| unsafe { table.of(at) }.scanned;
                objects.iter().filter(is_scanned).count()
            });
        });
        group.bench_function("isinstance in C", |bencher| {
            bencher.iter(|| {
                // SAFETY: as above.
                let is = |&&at: &&*mut ffi::PyObject| unsafe {
                    ffi::PyObject_TypeCheck(at, record) != 0
                };
                objects.iter().filter(is).count()
            });
        });
    });
}

fn walks(criterion: &mut Criterion) {
    Python::attach(|py| {
        let names = heap(py);
        let record = PyTuple::new(py, [names.get_item("Record").unwrap().unwrap()]).unwrap();
        let roots = PyTuple::new(py, [names.get_item("heap").unwrap().unwrap()]).unwrap();
        let libraries = Libraries::default();
        let get_objects = py.import("gc").unwrap().getattr("get_objects").unwrap();
        let collect = py.import("gc").unwrap().getattr("collect").unwrap();
        let count = pointers(py, &names).len() as u64;
        let mut group = criterion.benchmark_group("heap");
        group.throughput(Throughput::Elements(count));
        group.bench_with_input(
            BenchmarkId::new("scan", count),
            &record,
            |bencher, types| {
                bencher.iter(|| black_box(scan(py, types).unwrap().len()));
            },
        );
        group.bench_with_input(
            BenchmarkId::new("closure", count),
            &roots,
            |bencher, roots| {
                bencher.iter(|| black_box(closure(py, roots, &libraries).unwrap()));
            },
        );
        group.bench_function(BenchmarkId::new("gc.get_objects()", count), |bencher| {
            bencher.iter(|| black_box(get_objects.call0().unwrap()));
        });
        group.bench_function(BenchmarkId::new("gc.collect()", count), |bencher| {
            bencher.iter(|| black_box(collect.call0().unwrap()));
        });
    });
}

criterion_group!(core, id_set, type_table, walks);
criterion_main!(core);
