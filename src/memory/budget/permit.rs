//! A permit: bytes that were taken from a budget, until they are given back.

use std::{cell::Cell, rc::Rc};

use super::Budget;
use crate::memory::prices::ACCEPT_RESERVE;

/// Bytes taken from a [`Budget`]; given back on drop.
#[derive(Debug)]
pub struct Permit {
    pub(super) budget: Rc<Budget>,
    pub(super) bytes: u64,
    pub(super) purpose: Purpose,
}

/// The purpose of a permit, where it is counted separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Head,
    Spared,
    Exchange,
    Http2,
    Resting,
    Receiving,
    Sending,
    LargeHead,
    Handshake,
    ClientHandshake,
    Other,
}

impl Permit {
    /// The bytes of this permit.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The budget that it was taken from.
    pub fn budget(&self) -> &Rc<Budget> {
        &self.budget
    }

    /// Changes the permit to `bytes`, which are more than now, where one socket may have so many: an eighth of what is left
    /// for all, a quarter while less than half of the budget is spent. So the first sockets have much, many have little each,
    /// and something is always left for the next. What is to be received leaves an eighth of the budget for what is to be
    /// sent on.
    pub fn widen(&mut self, bytes: u64) -> bool {
        let eighths = if self.purpose == Purpose::Sending {
            7
        } else {
            6
        };
        let may = bytes <= self.budget.left_for_width(eighths) / self.budget.sharers();
        if may {
            self.resize(bytes);
        }
        may
    }

    /// Changes the permit to `bytes`, which are more than now, where memory is not wanted and something is left for new
    /// connections.
    pub fn extend(&mut self, bytes: u64) -> bool {
        let budget = &self.budget;
        let spent = budget.spent.get() - self.bytes + bytes + ACCEPT_RESERVE;
        let may = !budget.is_wanted() && budget.plan.pool.is_none_or(|pool| spent <= pool);
        if may {
            self.resize(bytes);
        }
        may
    }

    /// Changes the permit to `bytes`: more is taken even if it is not available, the difference is given back. Not for permits
    /// of exchanges, unfinished heads and HTTP/2 connections, which are summed up separately.
    pub fn resize(&mut self, bytes: u64) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        let moved = |sum: &Cell<u64>| sum.set(sum.get() - before + bytes);
        moved(&self.budget.spent);
        if self.purpose == Purpose::Resting {
            moved(&self.budget.resting);
        }
        if let Some(fund) = self.budget.fund(self.purpose) {
            moved(&fund.spent);
            fund.queue.wake();
        }
        if bytes < before {
            self.budget.wake();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.spent.set(self.budget.spent.get() - self.bytes);
        match self.purpose {
            Purpose::Head => self.budget.heads.set(self.budget.heads.get() - self.bytes),
            Purpose::Resting => self
                .budget
                .resting
                .set(self.budget.resting.get() - self.bytes),
            Purpose::Http2 => self.budget.http2.set(self.budget.http2.get() - self.bytes),
            Purpose::Spared => self.budget.spared.set(self.budget.spared.get() - 1),
            Purpose::Exchange => self.budget.exchanges.set(self.budget.exchanges.get() - 1),
            Purpose::LargeHead | Purpose::Handshake | Purpose::ClientHandshake => {
                if let Some(fund) = self.budget.fund(self.purpose) {
                    fund.spent.set(fund.spent.get() - self.bytes);
                    fund.queue.wake();
                }
            }
            Purpose::Receiving | Purpose::Sending | Purpose::Other => {}
        }
        self.budget.wake();
    }
}
