package litestream

import (
	"fmt"
	"time"
)

// simRetention is short beside a run, at about a second a step.
const simRetention = 5 * time.Minute

// step does one thing.
func (s *sim) step() {
	s.clock = s.clock.Add(time.Second)
	if s.db == nil || s.db.mu.session == nil {
		s.closedStep()
		return
	}
	switch p := s.rng.IntN(1000); {
	case p < 480:
		s.act()
		s.note("act")
	case p < 700:
		s.capture()
	case p < 780:
		s.checkpoint()
	case p < 900:
		s.sync()
	case p < 930:
		s.snapshot()
	case p < 945:
		r := s.db.Replicas[s.rng.IntN(len(s.db.Replicas))]
		s.withSlot("retention", func() error { return r.EnforceRetention(bg) })
	case p < 965:
		s.kill()
	case p < 972:
		s.kill()
		s.powerLoss()
	case p < 980:
		s.shutdown()
	case p < 983 && s.db.mu.capturer.proof == pinned: // after our TRUNCATE any salts are right
		s.count.overruns++
		s.host.overrun()
		s.note("overrun")
		s.host.seenEpoch = -1
		s.excused = true
	case p < 986:
		if s.host.rewind() {
			s.count.rewinds++
			s.note("rewind")
			s.host.seenEpoch = -1
			s.excused, s.lossy = true, true
			s.calm = true // two such things at once cannot be told apart
			s.capture()
			s.calm = false
		}
	case p < 988:
		generation := s.db.Pos().Generation
		s.requested = true
		s.call("request", func() error { return s.db.newGeneration(bg, generation, "requested") })
	default:
		for range s.rng.IntN(10) {
			s.act()
		}
	}
}

// closedStep is a step while the library does not have the database open, or
// no process runs it: then nobody keeps others from the WAL.
func (s *sim) closedStep() {
	if s.rng.IntN(4) > 0 {
		for range s.rng.IntN(5) {
			s.act()
		}
		return
	}
	if s.db == nil {
		s.start()
	}
	s.prepareOpen()
	s.killSoon()
	ok := s.call("open", s.open)
	if s.dead {
		s.count.kills++
		s.end()
	} else if ok {
		s.killIn = 0
	}
}

// killSoon kills the process in the middle of one of some calls.
func (s *sim) killSoon() {
	if s.rng.IntN(8) == 0 {
		s.killIn = 1 + s.rng.IntN(40)
	}
}

// capture captures, and expects everything that was committed before.
func (s *sim) capture() bool {
	want := s.committed()
	ok := s.call("capture", func() error { return s.db.sync(bg, tierNone) })
	if ok {
		s.checkComplete(want)
		if s.db.mu.capturer.proof != unproven {
			s.excused = s.host.truncates != s.truncatesSeen
		}
	}
	return ok
}

// checkpoint does one of the things that a session asks of its keeper.
func (s *sim) checkpoint() {
	n := s.rng.IntN(8)
	s.call(fmt.Sprint("checkpoint ", n), func() error {
		return s.db.withSession(bg, func(ss *session) error {
			if err := ss.capture(); err != nil {
				return err
			}
			switch n {
			case 0:
				return ss.keep.roll(bg)
			case 1, 2:
				return ss.cooperate(bg)
			case 3:
				return ss.keep.rest()
			}
			_, err := ss.tryCheckpoint(bg, []string{CheckpointModePassive, CheckpointModeFull, CheckpointModeRestart, CheckpointModeTruncate}[n-4])
			return err
		})
	})
}

// sync brings a replica up to date, most often after a capture.
func (s *sim) sync() {
	if s.rng.IntN(3) > 0 && !s.capture() {
		return
	}
	if s.db.mu.session == nil {
		return
	}
	i := s.rng.IntN(len(s.replicas))
	r := s.db.Replicas[i]
	if s.withSlot(fmt.Sprint("sync ", i), func() error { return r.Sync(bg) }) && s.db.mu.session != nil {
		s.count.syncs++
		if got, want := r.Pos(), s.db.Pos(); got != want && !want.IsZero() { // a new one did not begin yet
			s.failf("replica %d is at %s after its sync, the database at %s", i, got, want)
		}
		if !r.Pos().IsZero() {
			s.moment(i, r.Pos())
		}
	}
}

func (s *sim) snapshot() {
	i := s.rng.IntN(len(s.replicas))
	s.withSlot(fmt.Sprint("snapshot ", i), func() error {
		info, err := s.db.Replicas[i].Snapshot(bg)
		if err == nil {
			s.count.snapshots++
			s.fail(s.checkSnapshot(s.replicas[i], info))
		}
		return err
	})
}

// withSlot makes a call that may take a snapshot. The simulation decides when
// the database file is read: when the client asks for it.
func (s *sim) withSlot(what string, fn func() error) bool {
	s.inLib = true // see call
	s.holdSnapshot()
	ok := s.call(what, fn)
	s.releaseSnapshot()
	return ok
}

// holdSnapshot keeps the library from reading the database file for a snapshot.
func (s *sim) holdSnapshot() {
	if s.inLib && !s.slot {
		snapshotSlots <- struct{}{}
		s.slot = true
	}
}

func (s *sim) releaseSnapshot() {
	if s.slot {
		<-snapshotSlots
		s.slot = false
	}
}

// kill ends the process in the middle of a call.
func (s *sim) kill() {
	s.count.kills++
	s.killIn = 1 + s.rng.IntN(40)
	switch s.rng.IntN(4) {
	case 0:
		s.capture()
	case 1:
		s.checkpoint()
	case 2:
		s.sync()
	case 3:
		s.snapshot()
	}
	s.end()
}

// powerLoss follows a kill: it damages the WAL, and what was written of the
// shadow WAL, which nobody syncs.
func (s *sim) powerLoss() {
	s.count.losses++
	s.lossy, s.excused = true, true
	for _, c := range s.host.readers {
		c.end()
	}
	s.host.rollback()
	s.host.powerLoss()
	s.note("power loss")
	if s.rng.IntN(2) == 0 {
		return
	}
	for _, name := range s.mem.Files(string(metaDir(s.path + MetaDirSuffix))) {
		if s.rng.IntN(6) > 0 || name == metaDir(s.path+MetaDirSuffix).lineage() { // that is durable
			continue
		}
		switch s.rng.IntN(4) {
		case 0:
			s.check1(s.mem.Remove(name))
		case 1:
			s.mem.Damage(name, func([]byte) []byte { return nil })
		case 2:
			s.mem.Damage(name, func(b []byte) []byte { return b[:s.rng.IntN(len(b)+1)] })
		case 3:
			s.mem.Damage(name, func(b []byte) []byte { clear(b[s.rng.IntN(len(b)+1):]); return b })
		}
	}
}

func (s *sim) check1(err error) {
	if err != nil {
		s.fail(err)
	}
}

// shutdown closes the library in good order.
func (s *sim) shutdown() {
	s.calm = true
	defer func() { s.calm = false }()
	s.check1(s.db.sync(bg, tierNone))
	s.check1(s.db.endSession())
	s.end()
}
