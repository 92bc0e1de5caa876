//! Reports of cells that are made by hand.

use super::*;
use crate::study::cell::{FORMAT, Measured, Part, TaskAnswers};
use crate::train::Forgotten;
use serde_json::Value;

/// A part of two tasks: answers, and the loss of all.
fn part(first: &str, second: &str, loss: f64) -> Part {
    let task = |right: &str| TaskAnswers { loss, right: right.into() };
    Part { loss, tasks: [("dates".to_string(), task(first)), ("sums".to_string(), task(second))].into() }
}

/// A cell that has so many of ten answers right in each task, on tuning and in the end.
fn cell(name: &str, learning_rate: f64, seed: u64, tuning: [usize; 2], end: [usize; 2]) -> Cell {
    let right = |count: usize| "1".repeat(count) + &"0".repeat(10 - count);
    let asked = |[first, second]: [usize; 2]| part(&right(first), &right(second), 0.5);
    Cell {
        format: FORMAT,
        study: "ab".into(),
        name: name.into(),
        method: "some".into(),
        options: [("r".to_string(), Value::from(4))].into_iter().collect(),
        learning_rate,
        seed,
        steps: 100,
        trained_values: 1_234_567,
        active_values: 1000,
        router: None,
        parts: [(TUNING.to_string(), asked(tuning)), (FINAL.to_string(), asked(end))].into(),
        forgotten: Some(Forgotten { prompts: 64, kl: 0.25, unchanged: 0.5 }),
        curve: vec![(50, 2.0 + seed as f64), (100, 1.0)],
        measured: Measured {
            device: "processor".into(),
            threads: Some(2),
            version: "1".into(),
            train_seconds: 50.0,
            ask_seconds: 5.0,
            tokens_per_second: 900.0,
            question_ms: 8.0,
            peak_bytes: Some(3 << 20),
            adapter_bytes: 4096,
            utilisation: Some(0.8),
            joules: None,
        },
    }
}

fn described(rows: &[&str], baselines: &[&str]) -> Description {
    let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
    Description { rows: names(rows), baselines: names(baselines), resamples: 500, ..Description::default() }
}

fn tuned(cells: &[Cell]) -> Tuning {
    Report::of(cells, &described(&["a"], &[])).unwrap().rows.remove(0).tuning
}

/// Two rows at three rates with two seeds.
fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (row, name) in ["a", "b"].into_iter().enumerate() {
        for (at, rate) in [1e-3, 2e-3, 4e-3].into_iter().enumerate() {
            for seed in 0..2 {
                let right = 4 + 2 * row + usize::from(at == 1) + seed as usize;
                cells.push(cell(name, rate, seed, [right, right - 2], [right, right - 3]));
            }
        }
    }
    cells
}

#[test]
fn the_best_rate_has_the_highest_mean_and_its_neighbours_are_there() {
    let report = Report::of(&cells(), &described(&["a", "b"], &["a"])).unwrap();
    let tuning = &report.rows[0].tuning;
    assert_eq!((tuning.best, tuning.mark, &*tuning.seeds), (Some(2e-3), None, &[0, 1][..]));
    let right: Vec<f64> = tuning.rates.iter().map(|rate| rate.exact_match.unwrap()).collect();
    assert!(right.iter().zip([0.35, 0.45, 0.35]).all(|(found, wanted)| (found - wanted).abs() < 1e-12));
    let text = report.markdown();
    assert!(text.contains("1e-3: 35.0 (0.5000) · **2e-3: 45.0 (0.5000)** · 4e-3: 35.0 (0.5000)"), "{text}");
}

#[test]
fn of_equal_rates_that_with_the_lower_loss_is_best() {
    // 0.1 + 0.7 and 0.3 + 0.5 are the same share of answers, though not as sums of binary fractions.
    let mut cells = [
        cell("a", 1e-3, 0, [3, 5], [5, 5]),
        cell("a", 2e-3, 0, [1, 7], [5, 5]),
        cell("a", 4e-3, 0, [5, 3], [5, 5]),
    ];
    assert_eq!(tuned(&cells).best, Some(1e-3), "of equal losses too the lower rate");
    cells[1].parts.get_mut(TUNING).unwrap().loss = 0.4;
    assert_eq!(tuned(&cells).best, Some(2e-3));
    cells[1].parts.get_mut(TUNING).unwrap().loss = -f64::NAN;
    cells[0].parts.get_mut(TUNING).unwrap().loss = f64::INFINITY;
    assert_eq!(tuned(&cells).best, Some(4e-3), "those that diverged are last");
    cells[1].parts.insert(TUNING.into(), part("1111100000", "1111000000", 9.0));
    assert_eq!(tuned(&cells).best, Some(2e-3), "exact match goes before the loss");
}

#[test]
fn tuning_looks_at_seeds_alone_that_all_rates_have() {
    let mut cells = vec![
        cell("a", 1e-3, 0, [5, 5], [5, 5]),
        cell("a", 2e-3, 0, [6, 6], [5, 5]),
        cell("a", 4e-3, 0, [4, 4], [5, 5]),
        // A seed of one rate alone, by which that would be best, and one more of the best rate.
        cell("a", 4e-3, 1, [10, 10], [5, 5]),
        cell("a", 2e-3, 2, [0, 0], [5, 5]),
    ];
    let tuning = tuned(&cells);
    assert_eq!((tuning.best, &*tuning.seeds), (Some(2e-3), &[0][..]));
    assert_eq!(tuning.rates.iter().map(|rate| rate.cells).collect::<Vec<_>>(), [1, 2, 2]);
    let report = Report::of(&cells, &described(&["a"], &[])).unwrap();
    assert_eq!(report.rows[0].at_best.as_ref().unwrap().seeds, [0, 2], "results are of all seeds");
    cells.remove(0);
    cells.push(cell("a", 1e-3, 7, [5, 5], [5, 5]));
    let report = Report::of(&cells, &described(&["a"], &[])).unwrap();
    assert_eq!((report.rows[0].tuning.best, &report.rows[0].at_best), (None, &None));
    assert!(report.markdown().contains("no seed has all rates"));
}

#[test]
fn a_best_rate_at_an_end_of_its_grid_has_a_mark() {
    let row = |right: [usize; 3]| {
        let rates = [1e-3, 2e-3, 4e-3].into_iter().zip(right);
        rates.map(|(rate, right)| cell("a", rate, 0, [right; 2], [5, 5])).collect::<Vec<Cell>>()
    };
    assert_eq!(tuned(&row([7, 6, 5])).mark, Some(Mark::Lowest));
    assert_eq!(tuned(&row([5, 6, 7])).mark, Some(Mark::Highest));
    assert_eq!(tuned(&row([5, 7, 6])).mark, None);
    assert_eq!(tuned(&row([5, 6, 7])[..1]).mark, Some(Mark::OneRate));
    let text = Report::of(&row([5, 6, 7]), &described(&["a"], &[])).unwrap().markdown();
    assert!(text.contains("| edge: highest |") && text.contains("| 4e-3 * |"), "{text}");
    let text = Report::of(&row([5, 6, 7])[..1], &described(&["a"], &[])).unwrap().markdown();
    assert!(text.contains("| one rate |"), "{text}");
}

#[test]
fn results_are_means_over_seeds_in_which_tasks_count_the_same() {
    let mut cells = [cell("a", 1e-3, 0, [5, 5], [9, 5]), cell("a", 1e-3, 1, [5, 5], [8, 4])];
    for cell in &mut cells {
        // Four times the questions of the other task do not weigh more.
        let sums = &mut cell.parts.get_mut(FINAL).unwrap().tasks.get_mut("sums").unwrap().right;
        *sums = sums.repeat(4);
    }
    cells[0].router = Some(1.0);
    cells[1].router = Some(0.9);
    cells[1].parts.get_mut(FINAL).unwrap().loss = 0.7;
    let report = Report::of(&cells, &described(&["a"], &[])).unwrap();
    let best = report.rows[0].at_best.as_ref().unwrap();
    let found = &best.parts[FINAL];
    assert!((found.exact_match.mean - 0.65).abs() < 1e-12, "{found:?}");
    assert!((found.deviation.unwrap() - 0.005f64.sqrt()).abs() < 1e-12);
    assert!(found.exact_match.low < 0.65 && 0.65 < found.exact_match.high);
    assert!((found.tasks["dates"].exact_match - 0.85).abs() < 1e-12);
    assert!((found.tasks["sums"].exact_match - 0.45).abs() < 1e-12);
    assert!((found.loss - 0.6).abs() < 1e-12 && (best.router.unwrap() - 0.95).abs() < 1e-12);
    assert_eq!(best.curve, [(50, 2.5), (100, 1.0)]);
    let text = report.markdown();
    assert!(text.contains("| final | 2 | 50 |"), "{text}");
    assert!(text.contains("1,234,567 | 1,000 | 95.0 | 0.2500 | 50.0 |"), "{text}");
    assert!(text.contains("| sums | 40 | 45.0 |"), "{text}");
}

#[test]
fn differences_are_of_the_same_seed_and_device() {
    let mut cells = cells();
    let report = Report::of(&cells, &described(&["a", "b"], &["a"])).unwrap();
    let [found] = &report.differences[..] else { panic!("{:?}", report.differences) };
    assert_eq!((&*found.row, &*found.baseline, &*found.seeds), ("b", "a", &[0, 1][..]));
    // Answers of every question but the first and last ones are the same: two more of ten are right, always.
    let estimate = found.estimate.unwrap();
    assert!((estimate.mean - 0.2).abs() < 1e-12 && estimate.low > 0.0 && found.is_clear());
    let reverse = Report::of(&cells, &described(&["a", "b"], &["b"])).unwrap();
    assert!((reverse.differences[0].estimate.unwrap().mean + 0.2).abs() < 1e-12);

    let last = cells.iter_mut().find(|cell| cell.name == "b" && cell.learning_rate == 2e-3 && cell.seed == 1);
    last.unwrap().measured.device = "another".into();
    let report = Report::of(&cells, &described(&["a", "b"], &["a"])).unwrap();
    assert_eq!((&*report.differences[0].seeds, &*report.differences[0].other_device), (&[0][..], &[1][..]));
    assert!(report.markdown().contains("| 2 on 2 devices |"));
    for cell in cells.iter_mut().filter(|cell| cell.name == "b") {
        cell.measured.device = "another".into();
    }
    let report = Report::of(&cells, &described(&["a", "b"], &["a"])).unwrap();
    assert_eq!((report.differences[0].estimate, report.differences[0].is_clear()), (None, false));
    assert!(report.markdown().contains("no pair: seeds in common are of different devices | 0 | 2 |"));
    let picture = report.pictures().into_iter().find(|picture| picture.file == "differences.svg").unwrap();
    assert!(picture.svg.contains("no pair: seeds in common"));
    for cell in cells.iter_mut().filter(|cell| cell.name == "b") {
        cell.seed += 5;
    }
    let report = Report::of(&cells, &described(&["a", "b"], &["a"])).unwrap();
    assert!(report.markdown().contains("no pair: no seed in common | 0 | 0 |"));
}

#[test]
fn other_parts_have_results_and_differences_of_their_own() {
    let mut cells = cells();
    for cell in &mut cells {
        let right = if cell.name == "a" { "1000" } else { "1110" };
        cell.parts.insert("unseen".into(), part(right, right, 0.1));
    }
    let mut description = described(&["a", "b"], &["a"]);
    description.parts.push("unseen".into());
    let report = Report::of(&cells, &description).unwrap();
    let parts: Vec<&str> = report.differences.iter().map(|difference| &*difference.part).collect();
    assert_eq!(parts, [FINAL, "unseen"]);
    assert_eq!(report.differences[1].estimate.unwrap().mean, 0.5);
    assert_eq!(report.rows[1].at_best.as_ref().unwrap().parts["unseen"].exact_match.mean, 0.75);
    assert!(report.markdown().contains("| final, % | unseen, % |"));
}

/// The Markdown before the part called measured, the JSON without that key, and the pictures.
fn lasting(report: &Report) -> (String, Value, Vec<Picture>) {
    let text = report.markdown();
    let (before, behind) = text.split_once("\n## Measured\n").unwrap();
    assert!(!behind.contains("\n## "), "measured is the last part");
    let json = report.json();
    let mut tree: Value = serde_json::from_str(&json).unwrap();
    assert!(tree.as_object_mut().unwrap().remove("measured").is_some());
    let last = json.rsplit("\n  \"").next().unwrap();
    assert!(last.starts_with("measured\""), "measured is the last key");
    (before.to_string(), tree, report.pictures())
}

#[test]
fn only_the_measured_part_depends_on_times_and_nothing_on_the_order() {
    let description = described(&["a", "b"], &["a"]);
    let first = Report::of(&cells(), &description).unwrap();
    let mut others = cells();
    others.reverse();
    others.swap(1, 7);
    let again = Report::of(&others, &description).unwrap();
    assert_eq!((first.markdown(), first.json()), (again.markdown(), again.json()));
    assert_eq!(first.pictures(), again.pictures());
    for (number, cell) in others.iter_mut().enumerate() {
        cell.measured = Measured {
            device: cell.measured.device.clone(),
            threads: Some(number),
            version: "2".into(),
            train_seconds: number as f64,
            ask_seconds: 1.0,
            tokens_per_second: 7.0,
            question_ms: 0.5,
            peak_bytes: None,
            adapter_bytes: 1,
            utilisation: None,
            joules: Some(3.0),
        };
    }
    let other = Report::of(&others, &description).unwrap();
    assert_eq!(lasting(&first), lasting(&other));
    assert_ne!(first.markdown(), other.markdown());
    assert_ne!(first.measured, other.measured);
}

#[test]
fn measured_figures_are_medians_at_the_best_rate_and_costs_sums_of_all() {
    let mut cells = cells();
    cells.iter_mut().for_each(|cell| cell.measured.joules = (cell.seed == 0).then_some(10.0));
    cells[2].measured.train_seconds = 60.0;
    let report = Report::of(&cells, &described(&["a", "b"], &[])).unwrap();
    let [a, _] = &report.measured.rows[..] else { panic!() };
    assert_eq!((a.cells, a.step_ms, a.joules, a.peak_bytes), (2, Some(550.0), Some(10.0), Some(3145728.0)));
    let [cost] = &report.measured.cost[..] else { panic!() };
    assert_eq!((cost.cells, cost.train_seconds, cost.joules), (12, 610.0, Some(60.0)));
    assert!(report.markdown().contains("| a | processor | 2 | 3.0 | 80.0 | 550.0 | 8.0 | 900 | 10 | 4.0 |"));
}

#[test]
fn the_order_on_tuning_and_in_the_end_is_compared_over_all_cells() {
    let right = [[2, 9], [5, 7], [6, 3], [7, 4]];
    let cell =
        |(seed, [tuning, end]): (usize, &[usize; 2])| cell("a", 1e-3, seed as u64, [*tuning; 2], [*end; 2]);
    let mut cells: Vec<Cell> = right.iter().enumerate().map(cell).collect();
    let report = Report::of(&cells, &described(&["a"], &[])).unwrap();
    // 1 - 6 * sum of squared differences of ranks (9 + 1 + 4 + 4) / (4 * 15).
    let found = report.rank_correlation;
    assert_eq!(found.cells, 4);
    assert!((found.spearman.unwrap() + 0.8).abs() < 1e-12, "{found:?}");
    cells.iter_mut().skip(1).for_each(|cell| _ = cell.parts.remove(FINAL));
    let report = Report::of(&cells, &described(&["a"], &[])).unwrap();
    assert_eq!((report.rank_correlation.cells, report.rank_correlation.spearman), (1, None));
}

#[test]
fn a_study_that_is_not_done_has_a_report() {
    let empty = Report::of(&[], &described(&["a", "b"], &["a"])).unwrap();
    assert!(empty.markdown().contains("No cell is finished."));
    let begun = Report::of(&cells()[..1], &described(&["a", "b"], &["a", "b"])).unwrap();
    assert!(begun.markdown().contains("| b | - |  | 0 | no cells |  |"));
    for report in [empty, begun] {
        assert!(report.json().contains("\"differences\": []"));
        assert!(report.pictures().iter().all(|picture| !picture.svg.contains("NaN")));
    }
}

#[test]
fn names_and_losses_that_are_odd_do_no_harm() {
    let mut cells = cells();
    for cell in &mut cells {
        let odd = if cell.name == "a" { "x|y<z>\n&" } else { "b" };
        cell.name = odd.into();
        cell.curve.push((150, f64::NAN));
        cell.parts.get_mut(FINAL).unwrap().loss = f64::INFINITY;
    }
    let report = Report::of(&cells, &described(&["x|y<z>\n&", "b"], &["x|y<z>\n&"])).unwrap();
    let text = report.markdown();
    assert!(text.contains("| x\\|y\\<z> & |") && text.contains("| not finite |"), "{text}");
    for Picture { file, svg } in report.pictures() {
        assert!(svg.contains("x|y&lt;z&gt; &amp;") && !svg.contains("NaN") && !svg.contains("inf"), "{file}");
    }
    assert!(serde_json::from_str::<Value>(&report.json()).is_ok());
}

#[test]
fn cells_that_do_not_belong_together_are_refused() {
    let refused = |change: &dyn Fn(&mut Vec<Cell>)| {
        let mut cells = cells();
        change(&mut cells);
        Report::of(&cells, &described(&["a", "b"], &["a"])).unwrap_err().to_string()
    };
    assert!(refused(&|cells| cells[3].study = "other".into()).contains("is of study"));
    assert!(refused(&|cells| cells[3].format = 2).contains("format 2"));
    assert!(refused(&|cells| cells[3].name = "c".into()).contains("no such row"));
    assert!(
        refused(&|cells| cells[3].method = "other".into())
            .contains("row 'a', learning rate 2e-3, seed 1: its method")
    );
    assert!(refused(&|cells| _ = cells[3].options.insert("r".into(), 8.into())).contains("option"));
    assert!(refused(&|cells| cells.push(cells[3].clone())).contains("two of it"));
    assert!(refused(&|cells| cells[3].learning_rate = f64::NAN).contains("above 0"));
    assert!(refused(&|cells| cells[3].learning_rate = 0.0).contains("above 0"));
    let with = |right: &'static str| {
        move |cells: &mut Vec<Cell>| _ = cells[3].parts.insert(FINAL.into(), part(right, "0000000000", 1.0))
    };
    assert!(refused(&with("")).contains("signs 0 and 1"));
    assert!(refused(&with("01x")).contains("signs 0 and 1"));
    assert!(refused(&with("010")).contains("numbers of questions"));
    assert!(
        refused(&|cells| _ = cells[3].parts.insert("more".into(), part("1", "1", 1.0)))
            .contains("no part 'more'")
    );
    assert!(refused(&|cells| cells[3].parts.get_mut(FINAL).unwrap().tasks.clear()).contains("has no task"));
    let description = |change: &dyn Fn(&mut Description)| {
        let mut description = described(&["a", "b"], &["a"]);
        change(&mut description);
        Report::of(&cells(), &description).unwrap_err().to_string()
    };
    assert!(description(&|d| d.rows.push("a".into())).contains("twice"));
    assert!(description(&|d| d.baselines.push("c".into())).contains("no row 'c'"));
    assert!(description(&|d| _ = d.parts.pop()).contains("parts"));
    assert!(description(&|d| d.resamples = 0).contains("resamples"));
}
