//! Sums of products through the lanes, against a plain sum in the order that `product.h` names, bit
//! for bit: sizes around every tile, all layouts, every cut that a device's memory can make
//! necessary.

use std::sync::Arc;

use thalweg::device::{DEPTH, Driver, Kernel, Products, SQUARE};
use thalweg::error::{Error, Kind};
use thalweg::linalg::{Adder, Backend, Columns, Matrix};

use super::fake::{Call, Fake};
use super::kernels::{driver, split_mix};

/// Terms whose factors a block of threads holds at a time, `STEP` in `product.h`.
const STEP: usize = 16;
const PLENTY: u64 = 1 << 30;

/// A matrix and how it lies in memory.
struct Factor {
    elements: Vec<f32>,
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl Factor {
    /// Numbers below one in magnitude, of many binades, both zeros and subnormals among them.
    fn random(rows: usize, columns: usize, transposed: bool, seed: u64) -> Self {
        let mut state = seed;
        let mut number = || {
            let bits = split_mix(&mut state);
            let [_, _, _, _, low, high, binade, kind] = bits.to_le_bytes();
            let unit = f32::from(u16::from_le_bytes([low, high])) / 65536.0 - 0.5;
            match kind {
                0 => 0.0,
                1 => -0.0,
                2 => unit * f32::from_bits(1 << 20),
                _ => unit * 2f32.powi(-i32::from(binade % 12)),
            }
        };
        Self {
            elements: (0..rows * columns).map(|_| number()).collect(),
            rows,
            columns,
            transposed,
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        match self.transposed {
            true => Matrix::new(&self.elements, self.columns, self.rows).transposed(),
            false => Matrix::new(&self.elements, self.rows, self.columns),
        }
    }

    fn at(&self, row: usize, column: usize) -> f32 {
        self.elements[if self.transposed {
            column * self.rows + row
        } else {
            row * self.columns + column
        }]
    }
}

/// One addition to a sum.
struct Step {
    scale: f32,
    left: Factor,
    right: Factor,
}

impl Step {
    fn new(rows: usize, depth: usize, columns: usize, layout: usize, scale: f32) -> Self {
        let seed = 1 + (rows * 1009 + depth * 31 + columns) as u64;
        Self {
            scale,
            left: Factor::random(rows, depth, layout & 1 != 0, seed),
            right: Factor::random(depth, columns, layout & 2 != 0, !seed),
        }
    }
}

/// The sums in the documented order.
fn plain(rows: usize, columns: usize, steps: &[Step]) -> Vec<f32> {
    let mut sums = vec![0.0_f32; rows * columns];
    for Step { scale, left, right } in steps {
        for (at, sum) in sums.iter_mut().enumerate() {
            let (row, column) = (at / columns, at % columns);
            for first in (0..left.columns).step_by(DEPTH) {
                let terms = first..left.columns.min(first + DEPTH);
                let part = terms.fold(0.0, |part, term| {
                    left.at(row, term).mul_add(right.at(term, column), part)
                });
                *sum = scale.mul_add(part, *sum);
            }
        }
    }
    sums
}

fn added(
    products: &Products,
    rows: usize,
    columns: usize,
    steps: &[Step],
) -> Result<Vec<f32>, Error> {
    let mut result = vec![f32::NAN; rows * columns];
    let mut sum = products.begin(rows, &mut result)?;
    steps
        .iter()
        .try_for_each(|step| sum.add(step.scale, step.left.matrix(), step.right.matrix()))?;
    sum.finish()?;
    Ok(result)
}

fn compare(products: &Products, (rows, columns): (usize, usize), steps: &[Step], about: &str) {
    let wanted = plain(rows, columns, steps);
    let got = added(products, rows, columns, steps).expect("no failure");
    let differs = got
        .iter()
        .zip(&wanted)
        .position(|(got, wanted)| got.to_bits() != wanted.to_bits());
    let depths: Vec<usize> = steps.iter().map(|step| step.left.columns).collect();
    assert_eq!(
        differs, None,
        "{about}: {rows} x {columns}, terms {depths:?}: {got:?} for {wanted:?}"
    );
}

fn with(host: u64, device: u64) -> Products {
    Products::new(driver(), host, device)
        .expect("memory")
        .with_own_kernel()
}

/// The least device memory that will do.
fn least() -> u64 {
    let (mut too_small, mut enough) = (0, PLENTY);
    while enough - too_small > 1 {
        let middle = enough.midpoint(too_small);
        if Products::pinned_bytes(PLENTY, middle).is_ok() {
            enough = middle
        } else {
            too_small = middle
        }
    }
    enough
}

#[test]
fn sums_agree_at_every_boundary_in_every_layout() {
    let products = with(PLENTY, PLENTY);
    for layout in 0..4 {
        for depth in [
            0,
            1,
            STEP - 1,
            STEP,
            STEP + 1,
            DEPTH - 1,
            DEPTH,
            DEPTH + 1,
            2 * DEPTH + STEP + 1,
        ] {
            compare(
                &products,
                (3, SQUARE + 1),
                &[Step::new(3, depth, SQUARE + 1, layout, 0.37)],
                "depths",
            );
        }
        let sizes = [0, 1, SQUARE - 1, SQUARE, SQUARE + 1];
        for (rows, columns) in sizes
            .iter()
            .flat_map(|rows| sizes.map(|columns| (*rows, columns)))
        {
            compare(
                &products,
                (rows, columns),
                &[Step::new(rows, STEP + 1, columns, layout, 1.0)],
                "sizes",
            );
        }
    }
}

#[test]
fn what_is_added_later_goes_on_from_what_is_there() {
    let products = with(PLENTY, PLENTY);
    let (rows, columns) = (SQUARE - 1, 5);
    let step = |(layout, depth): (usize, usize)| {
        Step::new(rows, depth, columns, layout, 0.1 + depth as f32)
    };
    let steps: Vec<Step> = [7, 0, DEPTH + 3, 1, 40]
        .into_iter()
        .enumerate()
        .map(step)
        .collect();
    compare(&products, (rows, columns), &steps, "several");
    compare(&products, (rows, columns), &[], "nothing is zero");
    compare(
        &products,
        (rows, columns),
        &steps[..1],
        "what was there before is gone",
    );
}

#[test]
fn no_memory_changes_a_bit() {
    let (rows, columns) = (SQUARE + 2, 2 * SQUARE + 7);
    let step = |layout: usize| Step::new(rows, 2 * DEPTH + 30 * layout, columns, layout, 0.5);
    let steps: Vec<Step> = [0, 3].into_iter().map(step).collect();
    // Carried to and fro in small lanes and in larger ones; there, in small lanes that cut it and
    // in large ones.
    for (host, device) in [
        (0, least()),
        (0, PLENTY),
        (40 << 20, PLENTY),
        (PLENTY, PLENTY),
        (PLENTY, 2 * least()),
    ] {
        compare(
            &with(host, device),
            (rows, columns),
            &steps,
            &format!("{host} and {device} bytes"),
        );
    }
    let carried = with(0, least());
    assert!(
        carried.most_entries() < rows * columns,
        "nothing is carried"
    );
    assert!(
        Products::new(Fake::new(), PLENTY, least() - 1).is_err_and(|error| {
            let hint = error.hint().unwrap_or_default().to_owned();
            error.kind() == Kind::Device && hint.contains("--device-memory 1MiB")
        })
    );
}

#[test]
fn columns_that_are_reordered_on_the_way_change_no_bit() {
    let (rows, depth, columns) = (SQUARE - 3, DEPTH + 40, 2 * SQUARE + 7);
    let source: Vec<u32> = (0..columns)
        .map(|at| u32::try_from((at * 5 + 3) % columns).expect("small"))
        .collect();
    let negative: Vec<bool> = (0..columns).map(|at| at % 3 == 0).collect();
    let order = Columns::new(&source, &negative);
    let before = Step::new(rows, depth, columns, 1, 0.25);
    let mut after = Step::new(rows, depth, columns, 1, 0.25);
    for (at, element) in after.right.elements.iter_mut().enumerate() {
        let (row, column) = (at / columns, at % columns);
        let value = before
            .right
            .at(row, usize::try_from(source[column]).expect("small"));
        *element = if negative[column] { -value } else { value };
    }
    let wanted = plain(rows, columns, &[after]);
    let add = |backend: &Backend| {
        let mut got = vec![f32::NAN; rows * columns];
        let mut sum = backend.begin(rows, &mut got).expect("room");
        sum.add_gathered(
            before.scale,
            before.left.matrix(),
            before.right.matrix(),
            &order,
        )
        .expect("no failure");
        sum.finish().expect("no failure");
        got
    };
    // On the device, whole and in pieces of terms; on the host, for parts that are cut or carried.
    for (host, device) in [
        (PLENTY, PLENTY),
        (20 << 20, PLENTY),
        (0, PLENTY),
        (0, least()),
    ] {
        let got = add(&Backend::on(Arc::new(with(host, device))));
        let same = got
            .iter()
            .zip(&wanted)
            .all(|(got, wanted)| got.to_bits() == wanted.to_bits());
        assert!(same, "{host} and {device} bytes");
    }
    let fake = Fake::new();
    let products =
        Products::new(Arc::clone(&fake) as Arc<dyn Driver>, PLENTY, PLENTY).expect("memory");
    add(&Backend::on(Arc::new(products)));
    assert_eq!(
        fake.calls()
            .iter()
            .filter(|call| matches!(call, Call::Launch(_, Kernel::Gather)))
            .count(),
        1
    );
    // In memory up to the order of sums.
    let near = |(got, wanted): (&f32, &f32)| (got - wanted).abs() < 1e-5;
    assert!(add(&Backend::default()).iter().zip(&wanted).all(near));
}

#[test]
fn factors_are_copied_while_those_before_them_are_multiplied() {
    let fake = Fake::new();
    let products =
        Products::new(Arc::clone(&fake) as Arc<dyn Driver>, PLENTY, PLENTY).expect("memory");
    let steps: Vec<Step> = (0..6)
        .map(|layout| Step::new(9, 20, 30, layout, 1.0))
        .collect();
    added(&products, 9, 30, &steps).expect("no failure");
    drop(products);
    assert!(fake.is_let_go() && fake.most_busy() == 2);
    let mut multiplied = 0;
    // A stream with a product that nobody has waited for.
    let mut busy = None;
    let mut overlapped = 0;
    for call in fake.calls() {
        match call {
            Call::CopyIn(stream) => {
                assert_ne!(
                    busy,
                    Some(stream),
                    "factors are replaced while they are multiplied"
                );
                overlapped += usize::from(busy.is_some());
            }
            Call::Launch(stream, kernel) => {
                assert_eq!(
                    (busy, kernel),
                    (None, Kernel::Product),
                    "two products add to the same entries at once"
                );
                (busy, multiplied) = (Some(stream), multiplied + 1);
            }
            Call::Wait(stream) if busy == Some(stream) => busy = None,
            Call::CopyOut(_) => assert_eq!(busy, None, "entries are fetched before they are whole"),
            _ => {}
        }
    }
    assert_eq!((multiplied, overlapped), (6, 5));
}

#[test]
fn a_failure_at_any_call_is_an_error_and_everything_is_given_back() {
    for (host, device) in [(PLENTY, PLENTY), (0, least())] {
        let (rows, columns) = (SQUARE + 2, SQUARE);
        let steps: Vec<Step> = (0..2)
            .map(|layout| Step::new(rows, 20, columns, layout, 1.0))
            .collect();
        let run = |fake: Arc<Fake>| {
            let products = Products::new(fake as Arc<dyn Driver>, host, device)?;
            let first = added(&products, rows, columns, &steps)?;
            let second = added(&products, rows, columns, &steps[..1])?;
            Ok::<_, Error>((first, second))
        };
        let undisturbed = Fake::new();
        let wanted = run(Arc::clone(&undisturbed)).expect("no failure");
        assert_eq!(wanted.0, plain(rows, columns, &steps));
        // Those at the end wait for what is empty, while all is given back: they concern nobody.
        let calls = undisturbed.calls().len() - 2;
        for at in 0..calls {
            let fake = Fake::failing_at(at);
            let error = run(Arc::clone(&fake))
                .err()
                .unwrap_or_else(|| panic!("call {at} of {calls} failed"));
            assert_eq!(error.kind(), Kind::Device, "call {at}: {error}");
            assert!(fake.is_let_go(), "call {at}: something was not given back");
        }
    }
}

#[test]
fn after_a_wait_that_failed_nothing_is_begun_and_after_a_caller_that_gave_up_everything_is() {
    let steps = [Step::new(4, 6, 5, 0, 1.0)];
    let products = with(PLENTY, PLENTY);
    let mut result = vec![0.0; 20];
    let mut sum = products.begin(4, &mut result).expect("no failure");
    sum.add(1.0, steps[0].left.matrix(), steps[0].right.matrix())
        .expect("no failure");
    drop(sum);
    compare(&products, (4, 5), &steps, "after one that was given up");

    let fake = Fake::new();
    let products =
        Products::new(Arc::clone(&fake) as Arc<dyn Driver>, PLENTY, PLENTY).expect("memory");
    added(&products, 4, 5, &steps).expect("no failure");
    let waits = |call: &Call| matches!(call, Call::Wait(_));
    let first = fake.calls().iter().position(waits).expect("somebody waits");
    fake.fail_from(first);
    let backend = Backend::on(Arc::new(products));
    added_on(&backend, &steps[0]).expect_err("it fails from now on");
    fake.fail_from(usize::MAX);
    let error = added_on(&backend, &steps[0]).expect_err("nothing that it gives is worth anything");
    assert!(
        error.to_string().starts_with("device has failed: "),
        "{error}"
    );
}

fn added_on(backend: &Backend, step: &Step) -> Result<(), Error> {
    let mut result = vec![0.0; step.left.rows * step.right.columns];
    let mut sum = backend.begin(step.left.rows, &mut result)?;
    sum.add(step.scale, step.left.matrix(), step.right.matrix())?;
    sum.finish()
}
