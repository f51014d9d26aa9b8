//! Which keys a shard owns, and the steps that change it: pure.
//!
//! ```text
//!           Serve                  Receive             Own
//!   Fresh --------> Serving{own} ----------> Receiving ----> Serving{own + moved}
//!     |               ^   |  ^                   |
//!     | Receive       |   |  +---- Abandon ------+-------> Fresh (when it owned nothing)
//!     +---------------|---|-> Receiving
//!           Unfreeze  |   | Freeze
//!                     |   v
//!                    Frozen ---- Drop ----> Serving{what is left} or Dropped
//!
//!   Close: any phase ----> Dropped
//! ```
//!
//! A shard takes part in at most one workflow at a time. A step that was done already is done again without
//! an effect, so that a driver that crashed may repeat it; a workflow below the highest one seen is gone for
//! ever, and so is one that ended in another way. Between `Freeze` at the source and `Own` at the target
//! nobody owns the moving range: there may be such a moment, and never two owners.

use crate::hash::{HashRange, KeyHash, Rest};

rafted_value::messages! {
    /// Names a shard for ever: neither number is used again.
    #[derive(Copy, Eq, PartialOrd, Ord, Hash)]
    pub struct ShardId {
        /// The log index of the command that created the keyspace.
        pub keyspace: u64,
        /// The shard's number in its keyspace.
        pub shard: u64,
    }

    /// A range on its way from one shard to another.
    #[derive(Copy, Eq)]
    pub struct Transfer {
        /// The log index of the command that started the workflow.
        pub workflow: u64,
        /// Which copy of the changed keys this is.
        pub round: u32,
        /// What moves.
        pub range: HashRange,
    }

    /// What a shard owns.
    #[derive(Eq, Default)]
    pub enum Phase {
        /// Nothing yet.
        #[default]
        Fresh,
        /// A range.
        Serving {
            /// What it owns.
            own: HashRange,
        },
        /// It is the target of a workflow, and serves what it had before.
        Receiving {
            /// What it owns, if anything.
            own: Option<HashRange>,
            /// What it will own.
            transfer: Transfer,
            /// The only chunk that it takes now.
            next_chunk: u32,
        },
        /// It is the source of a workflow at its end: it serves what stays.
        Frozen {
            /// What it owned before, the moving range with it.
            own: HashRange,
            /// What it owns no more, unless the workflow is aborted.
            transfer: Transfer,
        },
        /// Nothing any more.
        Dropped,
    }

    /// A change of what a shard owns, committed in the shard's group.
    #[derive(Copy, Eq)]
    pub enum Step {
        /// The first owner of a range begins.
        Serve {
            /// Which shard this is.
            id: ShardId,
            /// What it owns.
            range: HashRange,
        },
        /// The target opens for a workflow.
        Receive {
            /// Which shard this is.
            id: ShardId,
            /// What it will receive.
            transfer: Transfer,
        },
        /// The target owns what it received, all of it.
        Own {
            /// The workflow.
            workflow: u64,
            /// How many chunks there were.
            chunks: u32,
        },
        /// The target gives up, and refuses `Own` from now on.
        Abandon {
            /// The workflow.
            workflow: u64,
        },
        /// The source stops serving what moves.
        Freeze {
            /// What moves.
            transfer: Transfer,
        },
        /// The source serves again what was about to move.
        Unfreeze {
            /// The workflow.
            workflow: u64,
        },
        /// The source forgets what has moved.
        Drop {
            /// The workflow.
            workflow: u64,
        },
        /// The keyspace was deleted.
        Close {
            /// The keyspace, so that no other can be closed by mistake.
            keyspace: u64,
        },
    }

    /// How a shard's part in a workflow ended.
    #[derive(Copy, Eq)]
    pub enum Ending {
        /// It owns what it received.
        Owned,
        /// It refused to own it.
        Abandoned,
        /// It serves again what it had frozen.
        Unfrozen,
        /// It forgot what had moved.
        Dropped,
    }

    /// Why a step was not taken. The shard is as it was.
    #[derive(Eq, thiserror::Error)]
    pub enum StepRefused {
        /// The workflow is not, or no more, the shard's.
        #[error("workflow {workflow} is gone: the shard has seen {highest} ({ending:?})")]
        Gone {
            /// The step's.
            workflow: u64,
            /// The highest one seen.
            highest: u64,
            /// How that one ended here.
            ending: Option<Ending>,
        },
        /// The step does not fit the phase.
        #[error("{step:?} does not fit {phase:?}")]
        WrongPhase {
            /// What was asked for.
            step: Step,
            /// What the shard is in.
            phase: Phase,
        },
        /// The step is for another shard or keyspace.
        #[error("{step:?} is for another shard: this is {id:?}")]
        WrongShard {
            /// What was asked for.
            step: Step,
            /// Which shard this is.
            id: Option<ShardId>,
        },
    }

    /// What a shard owns, and which workflows it has seen.
    #[derive(Eq, Default)]
    pub struct Ownership {
        id: Option<ShardId>,
        phase: Phase,
        /// The highest workflow that ended here, and how.
        last: Option<(u64, Ending)>,
    }
}

/// Whether a key is served here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Here.
    Here,
    /// Elsewhere, or nowhere for a moment.
    Moved {
        /// It is on its way: ask again after a while, here or elsewhere.
        wait: bool,
    },
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It had been taken before.
    Already,
    /// The phase changed; all keys stay.
    Changed,
    /// The phase changed; the keys of the range go.
    Forget(HashRange),
    /// The phase changed; every key goes.
    ForgetAll,
}

impl Ownership {
    pub(crate) fn id(&self) -> Option<ShardId> {
        self.id
    }

    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Who owns the hash.
    pub(crate) fn owner(&self, hash: KeyHash) -> Owner {
        let moved = |wait| Owner::Moved { wait };
        match &self.phase {
            Phase::Fresh => moved(true),
            Phase::Dropped => moved(false),
            Phase::Serving { own } if own.contains(hash) => Owner::Here,
            Phase::Serving { .. } => moved(false),
            Phase::Receiving { transfer, .. } if transfer.range.contains(hash) => moved(true),
            Phase::Receiving { own: Some(own), .. } if own.contains(hash) => Owner::Here,
            Phase::Receiving { .. } => moved(false),
            Phase::Frozen { transfer, .. } if transfer.range.contains(hash) => moved(true),
            Phase::Frozen { own, .. } if own.contains(hash) => Owner::Here,
            Phase::Frozen { .. } => moved(false),
        }
    }

    /// What is owned whole: for listings and ticks, which are about many keys.
    pub(crate) fn served(&self) -> Option<HashRange> {
        match &self.phase {
            Phase::Fresh | Phase::Dropped | Phase::Receiving { own: None, .. } => None,
            Phase::Serving { own } | Phase::Receiving { own: Some(own), .. } => Some(*own),
            Phase::Frozen { own, transfer } => match own.without(transfer.range) {
                Rest::Range(rest) => Some(rest),
                Rest::Nothing | Rest::NoEdge => None,
            },
        }
    }

    /// Takes a step, or says why not and stays as it is.
    pub(crate) fn take(&mut self, step: Step) -> Result<Taken, StepRefused> {
        match step {
            Step::Serve { id, range } => self.serve(step, id, range),
            Step::Receive { id, transfer } => self.receive(step, id, transfer),
            Step::Own { workflow, chunks } => self.own(step, workflow, chunks),
            Step::Abandon { workflow } => self.abandon(step, workflow),
            Step::Freeze { transfer } => self.freeze(step, transfer),
            Step::Unfreeze { workflow } => self.unfreeze(step, workflow),
            Step::Drop { workflow } => self.drop_moved(step, workflow),
            Step::Close { keyspace } => self.close(step, keyspace),
        }
    }

    fn serve(&mut self, step: Step, id: ShardId, range: HashRange) -> Result<Taken, StepRefused> {
        if self.id.is_some_and(|own| own != id) {
            return Err(StepRefused::WrongShard { step, id: self.id });
        }
        match self.phase {
            Phase::Fresh if self.last.is_none() => {
                self.id = Some(id);
                self.phase = Phase::Serving { own: range };
                Ok(Taken::Changed)
            }
            Phase::Serving { own } if own == range && self.last.is_none() => Ok(Taken::Already),
            _ => Err(self.wrong_phase(step)),
        }
    }

    fn receive(&mut self, step: Step, id: ShardId, transfer: Transfer) -> Result<Taken, StepRefused> {
        if self.id.is_some_and(|own| own != id) {
            return Err(StepRefused::WrongShard { step, id: self.id });
        }
        if let Phase::Receiving { transfer: current, .. } = &self.phase
            && *current == transfer
        {
            return Ok(Taken::Already);
        }
        self.not_ended(transfer.workflow)?;
        let own = match self.phase {
            Phase::Fresh => None,
            Phase::Serving { own } if own.join(transfer.range).is_some() => Some(own),
            _ => return Err(self.wrong_phase(step)),
        };
        self.id = Some(id);
        self.phase = Phase::Receiving { own, transfer, next_chunk: 0 };
        Ok(Taken::Changed)
    }

    fn own(&mut self, step: Step, workflow: u64, chunks: u32) -> Result<Taken, StepRefused> {
        if self.last == Some((workflow, Ending::Owned)) {
            return Ok(Taken::Already);
        }
        self.not_ended(workflow)?;
        match self.phase {
            Phase::Receiving { own, transfer, next_chunk } if transfer.workflow == workflow && next_chunk == chunks => {
                let joined = own.map_or(Some(transfer.range), |own| own.join(transfer.range));
                // `receive` has checked that they touch.
                let Some(own) = joined else { return Err(self.wrong_phase(step)) };
                self.phase = Phase::Serving { own };
                self.last = Some((workflow, Ending::Owned));
                Ok(Taken::Changed)
            }
            _ => Err(self.wrong_phase(step)),
        }
    }

    fn abandon(&mut self, step: Step, workflow: u64) -> Result<Taken, StepRefused> {
        if self.last == Some((workflow, Ending::Abandoned)) {
            return Ok(Taken::Already);
        }
        self.not_ended(workflow)?;
        let taken = match self.phase {
            Phase::Receiving { own, transfer, .. } if transfer.workflow == workflow => {
                self.phase = own.map_or(Phase::Fresh, |own| Phase::Serving { own });
                Taken::Forget(transfer.range)
            }
            // It never heard of the workflow, and will not from now on.
            Phase::Fresh | Phase::Serving { .. } => Taken::Changed,
            _ => return Err(self.wrong_phase(step)),
        };
        self.last = Some((workflow, Ending::Abandoned));
        Ok(taken)
    }

    fn freeze(&mut self, step: Step, transfer: Transfer) -> Result<Taken, StepRefused> {
        if let Phase::Frozen { transfer: current, .. } = &self.phase
            && *current == transfer
        {
            return Ok(Taken::Already);
        }
        self.not_ended(transfer.workflow)?;
        match self.phase {
            Phase::Serving { own } if own.without(transfer.range) != Rest::NoEdge => {
                self.phase = Phase::Frozen { own, transfer };
                Ok(Taken::Changed)
            }
            _ => Err(self.wrong_phase(step)),
        }
    }

    fn unfreeze(&mut self, step: Step, workflow: u64) -> Result<Taken, StepRefused> {
        if self.last == Some((workflow, Ending::Unfrozen)) {
            return Ok(Taken::Already);
        }
        self.not_ended(workflow)?;
        match self.phase {
            Phase::Frozen { own, transfer } if transfer.workflow == workflow => {
                self.phase = Phase::Serving { own };
                self.last = Some((workflow, Ending::Unfrozen));
                Ok(Taken::Changed)
            }
            _ => Err(self.wrong_phase(step)),
        }
    }

    fn drop_moved(&mut self, step: Step, workflow: u64) -> Result<Taken, StepRefused> {
        if self.last == Some((workflow, Ending::Dropped)) {
            return Ok(Taken::Already);
        }
        self.not_ended(workflow)?;
        match self.phase {
            Phase::Frozen { own, transfer } if transfer.workflow == workflow => {
                self.last = Some((workflow, Ending::Dropped));
                let Rest::Range(rest) = own.without(transfer.range) else {
                    self.phase = Phase::Dropped;
                    return Ok(Taken::ForgetAll);
                };
                self.phase = Phase::Serving { own: rest };
                Ok(Taken::Forget(transfer.range))
            }
            _ => Err(self.wrong_phase(step)),
        }
    }

    fn close(&mut self, step: Step, keyspace: u64) -> Result<Taken, StepRefused> {
        if self.id.is_some_and(|id| id.keyspace != keyspace) {
            return Err(StepRefused::WrongShard { step, id: self.id });
        }
        if self.phase == Phase::Dropped {
            return Ok(Taken::Already);
        }
        self.phase = Phase::Dropped;
        Ok(Taken::ForgetAll)
    }

    /// A workflow that ended here, or that is older than one that did, never comes back.
    fn not_ended(&self, workflow: u64) -> Result<(), StepRefused> {
        let current = match &self.phase {
            Phase::Receiving { transfer, .. } | Phase::Frozen { transfer, .. } => transfer.workflow,
            _ => 0,
        };
        let ended = self.last.is_some_and(|(highest, _)| workflow <= highest);
        if !ended && workflow >= current {
            return Ok(());
        }
        let highest = self.last.map_or(current, |(highest, _)| highest.max(current));
        let ending = self.last.filter(|&(last, _)| last == highest).map(|(_, ending)| ending);
        Err(StepRefused::Gone { workflow, highest, ending })
    }

    fn wrong_phase(&self, step: Step) -> StepRefused {
        StepRefused::WrongPhase { step, phase: self.phase.clone() }
    }
}

#[cfg(test)]
mod tests;
