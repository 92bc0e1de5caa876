//! Figures of questions, one of each for every model that is measured.

use mixlora::study::{Figure, mean_of_groups};
use std::collections::BTreeMap;

/// One measure of all questions.
pub struct Figures {
    /// Its name in JSON.
    pub key: &'static str,
    pub name: &'static str,
    /// Whether it is a share, which tables show in percent.
    pub is_share: bool,
    /// Whether tasks count the same whatever their size.
    pub by_task: bool,
    /// The task of each question, and its figure where it was answered.
    pub questions: Vec<(String, Option<Figure>)>,
}

impl Figures {
    /// The figures in the groups that their mean is over.
    pub fn groups(&self) -> Vec<Vec<Figure>> {
        let mut groups: BTreeMap<&str, Vec<Figure>> = BTreeMap::new();
        for (task, figure) in &self.questions {
            let group = if self.by_task { task.as_str() } else { "" };
            groups.entry(group).or_default().extend(figure);
        }
        groups.into_values().filter(|group| !group.is_empty()).collect()
    }

    /// The mean; none where no question was answered.
    pub fn mean(&self) -> Option<f64> {
        mean_of_groups(&self.groups())
    }

    /// The means of tasks.
    pub fn of_tasks(&self) -> BTreeMap<&str, f64> {
        let mut tasks: BTreeMap<&str, Vec<Figure>> = BTreeMap::new();
        for (task, figure) in &self.questions {
            tasks.entry(task).or_default().extend(figure);
        }
        tasks.into_iter().filter_map(|(task, figures)| Some((task, mean_of_groups(&[figures])?))).collect()
    }

    /// The differences to the figures of another model for the same questions, where both answered.
    pub fn less(&self, other: &Figures) -> Figures {
        let pairs = self.questions.iter().zip(&other.questions);
        let questions = pairs.map(|((task, a), (_, b))| {
            let difference = a.zip(*b).and_then(|(a, b)| a.less(b));
            (task.clone(), difference)
        });
        Figures { questions: questions.collect(), ..*self }
    }

    /// A mean for people.
    pub fn shown(&self, mean: f64) -> String {
        if self.is_share { format!("{:.1} %", 100.0 * mean) } else { format!("{mean:.4}") }
    }

    /// A difference for people, without its unit.
    pub fn signed(&self, difference: f64) -> String {
        if self.is_share { format!("{:+.1}", 100.0 * difference) } else { format!("{difference:+.4}") }
    }
}
