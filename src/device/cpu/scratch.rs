//! Scratch memory of the CPU executor: a stack for each thread, that grows to what the largest op needs and is then used again. A step
//! takes nothing from the heap after the first.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::Pod;
use smallvec::SmallVec;

/// Floats of a cache line. What is taken begins at the start of one: vectors that lie across two take twice as long to load.
const LINE: usize = 16;
const LINE_BYTES: usize = LINE * size_of::<f32>();

/// What scratch memory can hold.
///
/// # Safety
/// Every pattern of bytes is a value, and none of its bytes is padding.
pub unsafe trait Plain: Copy {}
// SAFETY: what `Pod` promises, and a larger alignment is refused.
unsafe impl<T: Pod> Plain for T {}

/// Floats that the stack of every thread should have: the most that one has needed so far.
static WANTED: AtomicUsize = AtomicUsize::new(0);
/// Of which [`level`] has told all threads.
static LEVELLED: AtomicUsize = AtomicUsize::new(0);

struct Stack {
    /// Owns what `bottom`, at the start of a line, is the first float of; `len` floats from there on are the stack.
    memory: Cell<Vec<f32>>,
    bottom: Cell<NonNull<f32>>,
    len: Cell<usize>,
    /// Floats in use at the bottom, and parts of them that were given back before those above them.
    top: Cell<usize>,
    gaps: RefCell<SmallVec<[(usize, usize); 32]>>,
    /// Parts in use, and the floats of those that found no room.
    num_held: Cell<usize>,
    elsewhere: Cell<usize>,
}

thread_local! {
    static STACK: Stack = Stack::empty();
}

/// Memory of `len` floats, and the first of them, at the start of a line.
fn zeros(len: usize) -> (Vec<f32>, NonNull<f32>) {
    let mut memory = vec![0.0; len + LINE];
    let skipped = memory.as_ptr().align_offset(LINE_BYTES).min(LINE);
    let first = NonNull::from(&mut memory[skipped..]).cast();
    (memory, first)
}

impl Stack {
    fn empty() -> Stack {
        Stack {
            memory: Cell::new(vec![]),
            bottom: Cell::new(NonNull::dangling()),
            len: Cell::new(0),
            top: Cell::new(0),
            gaps: RefCell::new(SmallVec::new()),
            num_held: Cell::new(0),
            elsewhere: Cell::new(0),
        }
    }

    /// Makes room for `len` floats, if nothing is in use.
    fn grow(&self, len: usize) {
        if self.num_held.get() == 0 && self.len.get() < len {
            let (memory, bottom) = zeros(len);
            self.memory.set(memory);
            self.bottom.set(bottom);
            self.len.set(len);
        }
    }

    fn hold(&self, len: usize) -> Held {
        let (start, end) = (self.top.get(), self.top.get() + len);
        self.grow(WANTED.load(Ordering::Relaxed).max(end));
        let held = if end <= self.len.get() {
            self.top.set(end);
            // SAFETY: `end` floats lie in the memory from `bottom` on.
            let first = unsafe { self.bottom.get().add(start) };
            Held { first, range: (start, end), own: None, _on_this_thread: PhantomData }
        } else {
            let (own, first) = zeros(len);
            self.elsewhere.set(self.elsewhere.get() + len);
            Held { first, range: (0, len), own: Some(own), _on_this_thread: PhantomData }
        };
        self.num_held.set(self.num_held.get() + 1);
        WANTED.fetch_max(self.top.get() + self.elsewhere.get(), Ordering::Relaxed);
        held
    }

    fn give_back(&self, held: &Held) {
        self.num_held.set(self.num_held.get() - 1);
        let (start, end) = held.range;
        if held.own.is_some() {
            return self.elsewhere.set(self.elsewhere.get() - end);
        }
        let mut gaps = self.gaps.borrow_mut();
        gaps.push((start, end));
        while let Some(i) = gaps.iter().position(|&(_, end)| end == self.top.get()) {
            self.top.set(gaps.swap_remove(i).0);
        }
    }
}

/// Floats that nobody else uses: a part of the thread's stack, or memory of its own until the stack can grow.
struct Held {
    first: NonNull<f32>,
    range: (usize, usize),
    own: Option<Vec<f32>>,
    _on_this_thread: PhantomData<*mut f32>,
}

impl Drop for Held {
    fn drop(&mut self) {
        STACK.with(|stack| stack.give_back(self));
    }
}

/// Scratch memory of the thread, given back when dropped.
pub struct Scratch<T> {
    held: Held,
    len: usize,
    _elements: PhantomData<T>,
}

/// `len` elements that hold whatever was there before.
pub fn take<T: Plain>(len: usize) -> Scratch<T> {
    const { assert!(align_of::<T>() <= LINE_BYTES) };
    let bytes = len.checked_mul(size_of::<T>()).expect("scratch memory has a size");
    let held = STACK.with(|stack| stack.hold(bytes.div_ceil(LINE_BYTES) * LINE));
    Scratch { held, len, _elements: PhantomData }
}

/// `len` times `value`.
pub fn filled<T: Plain>(len: usize, value: T) -> Scratch<T> {
    let mut scratch = take(len);
    scratch.fill(value);
    scratch
}

/// A copy of `values`.
pub fn copied<T: Plain>(values: &[T]) -> Scratch<T> {
    let mut scratch = take(values.len());
    scratch.copy_from_slice(values);
    scratch
}

/// An empty list with room for `most` elements.
pub fn list<T: Plain>(most: usize) -> List<T> {
    List { memory: take(most), len: 0 }
}

impl<T: Plain> Deref for Scratch<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the floats are initialised and hold `len` elements, of which every pattern is a value; nobody else uses them.
        unsafe { std::slice::from_raw_parts(self.held.first.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; `self` is borrowed exclusively, and elements leave all their bytes initialised.
        unsafe { std::slice::from_raw_parts_mut(self.held.first.as_ptr().cast(), self.len) }
    }
}

/// A list in scratch memory. It panics where it grows beyond its room.
pub struct List<T> {
    memory: Scratch<T>,
    len: usize,
}

impl<T: Plain> List<T> {
    /// Appends one.
    pub fn push(&mut self, value: T) {
        self.memory[self.len] = value;
        self.len += 1;
    }

    /// Appends several.
    #[inline(always)]
    pub fn extend_from_slice(&mut self, values: &[T]) {
        self.memory[self.len..][..values.len()].copy_from_slice(values);
        self.len += values.len();
    }

    /// Keeps those that `is_kept`.
    pub fn retain(&mut self, is_kept: impl Fn(&T) -> bool) {
        let mut kept = 0;
        for i in 0..self.len {
            let value = self.memory[i];
            if is_kept(&value) {
                self.memory[kept] = value;
                kept += 1;
            }
        }
        self.len = kept;
    }

    /// Keeps the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

impl<T: Plain> Extend<T> for List<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, values: I) {
        values.into_iter().for_each(|value| self.push(value));
    }
}

impl<T: Plain> Deref for List<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.memory[..self.len]
    }
}

impl<T: Plain> DerefMut for List<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[..self.len]
    }
}

/// Lets the stacks of all threads of the pool grow to the most that one has needed: which thread meets the largest task is chance.
pub fn level() {
    let wanted = WANTED.load(Ordering::Relaxed);
    if LEVELLED.fetch_max(wanted, Ordering::Relaxed) < wanted {
        rayon::broadcast(|_| STACK.with(|stack| stack.grow(wanted)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_meet_whatever_the_order_they_are_given_back_in() {
        // Twice: first without room, then on the stack.
        for _ in 0..2 {
            let mut a = filled::<usize>(5, 1);
            let mut b = filled::<f32>(100, 2.0);
            b[99] = 3.0;
            drop(a);
            let c = filled::<f64>(33, 4.0);
            a = filled(7, 5);
            assert!(b[..99].iter().all(|&v| v == 2.0) && b[99] == 3.0);
            drop(b);
            let d = filled::<[usize; 2]>(3, [6, 7]);
            assert!(c.iter().all(|&v| v == 4.0) && a.iter().all(|&v| v == 5) && d.iter().all(|&v| v == [6, 7]));
            for start in [a.as_ptr().addr(), c.as_ptr().addr(), d.as_ptr().addr()] {
                assert_eq!(start % LINE_BYTES, 0);
            }
        }
        STACK.with(|stack| assert_eq!((stack.top.get(), stack.num_held.get(), stack.elsewhere.get()), (0, 0, 0)));
        STACK.with(|stack| assert!(stack.gaps.borrow().is_empty()));
    }

    #[test]
    fn what_was_needed_once_is_there_the_next_time() {
        drop((filled::<f32>(10, 1.0), filled::<f32>(1000, 1.0)));
        let both = (filled::<f32>(10, 1.0), filled::<f32>(1000, 1.0));
        assert!(both.0.held.own.is_none() && both.1.held.own.is_none());
    }

    #[test]
    fn a_list_has_an_end() {
        let mut list = list::<u32>(2);
        list.extend([1, 2, 3].into_iter().take(2));
        assert_eq!(list[..], [1, 2]);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| list.push(3))).is_err());
    }
}
