//! From a study's file to its finished cells.

use super::train::Trainer;
use super::{Cell, Place, Report, Study, StudyFolder};
use crate::train::{Inputs, Stop};
use crate::{Device, Error, Result};
use std::collections::VecDeque;
use std::sync::Mutex;

/// Is told what a study does.
pub trait StudyObserver: Sync {
    /// A cell is finished; `done` of `all` that are known to be needed.
    fn cell(&self, cell: &Cell, done: usize, all: usize);
}

impl StudyObserver for () {
    fn cell(&self, _cell: &Cell, _done: usize, _all: usize) {}
}

/// A study with its folder.
pub struct StudyRun<'a> {
    study: &'a Study,
    folder: StudyFolder,
    fingerprint: String,
    /// Cells that are trained at the same time, each on threads of its own.
    jobs: usize,
}

/// What is finished and what is left of a study.
pub struct Progress {
    pub finished: Vec<Cell>,
    /// Runs that are left of those which are known; the comparison is known when all rates are tuned.
    pub left: Vec<Place>,
    /// Runs of the comparison that will be needed in any case, and are not known yet.
    pub later: usize,
}

impl<'a> StudyRun<'a> {
    /// Looks at the data and the model of a study. So many cells are trained at the same time.
    ///
    /// # Errors
    /// The data or the model cannot be read.
    pub fn new(study: &'a Study, folder: StudyFolder, jobs: usize) -> Result<Self> {
        let fingerprint = super::train::fingerprint(study)?;
        Ok(StudyRun { study, folder, fingerprint, jobs: jobs.max(1) })
    }

    /// Runs of the study that fit into memory at the same time: of those asked for, as many as the plan of the largest says.
    ///
    /// # Errors
    /// The data or the model cannot be read.
    pub fn jobs_that_fit(study: &Study, jobs: usize) -> Result<usize> {
        if jobs <= 1 {
            return Ok(1);
        }
        let mut fitting = jobs;
        let device = study.rows[0].config.device.open()?;
        for row in 0..study.rows.len() {
            let place = Place { row, learning_rate: 1.0, seed: 0 };
            let plan = Inputs::read(study.training(&place)?)?.plan(Some(&device))?;
            if let Some(most) = plan.limit() {
                fitting = fitting.min((most / plan.total().max(1)) as usize).max(1);
            }
        }
        Ok(fitting)
    }

    /// The finished cells of these places, and the places without one.
    fn look(&self, places: Vec<Place>) -> Result<(Vec<Cell>, Vec<Place>)> {
        let mut finished = Vec::new();
        let mut left = Vec::new();
        for place in places {
            match self.folder.read(self.study, &place, &self.fingerprint)? {
                Some(cell) => finished.push(cell),
                None => left.push(place),
            }
        }
        Ok((finished, left))
    }

    /// The best learning rate of each row by finished cells of the tuning.
    fn best(&self, tuned: &[Cell]) -> Result<Vec<f64>> {
        let report = Report::of(tuned, &self.study.description())?;
        let best = |row: &super::Row| {
            let none = || {
                Error::refused("study", format!("'{}' has no learning rate that can be compared", row.name))
            };
            row.tuning.best.ok_or_else(none)
        };
        report.rows.iter().map(best).collect()
    }

    /// Where the study stands.
    ///
    /// # Errors
    /// A cell's file is damaged, or of another study.
    pub fn progress(&self) -> Result<Progress> {
        let (mut finished, left) = self.look(self.study.tuning_cells())?;
        let seeds = |row: &super::StudyRow| {
            row.seeds.iter().filter(|seed| !self.study.tuning_seeds.contains(seed)).count()
        };
        if !left.is_empty() {
            return Ok(Progress { finished, left, later: self.study.rows.iter().map(seeds).sum() });
        }
        let (more, left) = self.look(self.comparison(&finished)?)?;
        finished.extend(more);
        Ok(Progress { finished, left, later: 0 })
    }

    /// The runs of the comparison that the tuning has not made.
    fn comparison(&self, tuned: &[Cell]) -> Result<Vec<Place>> {
        let tuning = self.study.tuning_cells();
        let all = self.study.final_cells(&self.best(tuned)?);
        Ok(all.into_iter().filter(|place| !tuning.contains(place)).collect())
    }

    /// Seconds that a cell takes: the median of finished ones, or by the first steps of one that is left; none where nothing
    /// is left.
    ///
    /// # Errors
    /// A cell's file is damaged or of another study, or a run fails.
    pub fn seconds_of_a_cell(&self) -> Result<Option<f64>> {
        let Progress { finished, left, .. } = self.progress()?;
        let mut seconds: Vec<f64> =
            finished.iter().map(|cell| cell.measured.train_seconds + cell.measured.ask_seconds).collect();
        seconds.sort_by(f64::total_cmp);
        match (seconds.get(seconds.len() / 2), left.first()) {
            (_, None) => Ok(None),
            (Some(median), _) => Ok(Some(*median)),
            (None, Some(place)) => Trainer::new(self.study, self.device()?, true).estimate(place).map(Some),
        }
    }

    /// Trains what is left, the tuning first. False where it was stopped.
    ///
    /// # Errors
    /// A cell's file is damaged or of another study, or a run fails.
    pub fn go(&self, stop: &Stop, observer: &dyn StudyObserver) -> Result<bool> {
        loop {
            let Progress { finished, left, later } = self.progress()?;
            if left.is_empty() {
                return Ok(true);
            }
            let all = finished.len() + left.len() + later;
            if !self.train(left, finished.len(), all, stop, observer)? {
                return Ok(false);
            }
        }
    }

    fn train(
        &self,
        left: Vec<Place>,
        done: usize,
        all: usize,
        stop: &Stop,
        observer: &dyn StudyObserver,
    ) -> Result<bool> {
        let queue = Mutex::new((VecDeque::from(left), done));
        let work = || -> Result<bool> {
            let mut trainer = Trainer::new(self.study, self.device()?, self.jobs == 1);
            loop {
                let next = lock(&queue).0.pop_front();
                let Some(place) = next else { return Ok(true) };
                let Some(cell) = trainer.train(&place, stop)? else { return Ok(false) };
                self.folder.write(self.study, &place, &cell)?;
                // The others go on while this one is told of.
                let done = {
                    let mut state = lock(&queue);
                    state.1 += 1;
                    state.1
                };
                observer.cell(&cell, done, all);
            }
        };
        let ended: Vec<Result<bool>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.jobs).map(|_| scope.spawn(work)).collect();
            let failed = || Err(Error::refused("study", "a cell ended in a panic"));
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| failed())).collect()
        });
        ended.into_iter().try_fold(true, |all, ended| Ok(ended? && all))
    }

    /// A device for one cell: of the CPU the threads are shared out.
    fn device(&self) -> Result<Device> {
        let mut options = self.study.rows[0].config.device.clone();
        let device = options.open()?;
        let Device::Cpu(cpu) = &device else { return Ok(device) };
        if self.jobs == 1 {
            return Ok(device);
        }
        options.threads = Some((cpu.threads() / self.jobs).max(1));
        options.open()
    }

    /// The report of what is finished.
    ///
    /// # Errors
    /// A cell's file is damaged or of another study, or a file cannot be written.
    pub fn report(&self) -> Result<(Report, Vec<std::path::PathBuf>)> {
        let report = Report::of(&self.progress()?.finished, &self.study.description())?;
        let paths = self.folder.report(&report)?;
        Ok((report, paths))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
