package litestream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// session is one opening of the database file: its parked descriptor, the
// connections, and the state of the capture. It ends when the DB is closed, or
// when the file or its WAL turn out to be others than those it opened.
//
// Its methods are called with DB.mu held.
type session struct {
	path     string
	walPath  string
	file     *parkedFile
	pool     *connPool
	walInfo  fs.FileInfo // identity of the WAL that the connections opened
	pageSize int
	keep     keeper
	capt     *capturer

	onCapture  func(captured) // after each capture that found something
	snapshots  int            // pins of running snapshots
	load       checkpointLoad // attempts at the current WAL index
	checkpoint time.Time      // last complete or attempted checkpoint
	backfilled Pos            // everything before it is in the database file
	pace       walPace
}

// errNoDatabase reports that there is no database yet: no file, or an empty one.
var errNoDatabase = errors.New("database does not exist yet")

// openSession opens the database at path, takes the pin, and resumes the
// position of an earlier run. It publishes nothing: on an error everything is
// as before.
func openSession(ctx context.Context, path, walPath string, capt *capturer) (s *session, err error) {
	file, err := parkDatabase(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoDatabase
	} else if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	s = &session{path: path, walPath: walPath, file: file, capt: capt, checkpoint: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
			s = nil
		}
	}()
	if err := file.use(path); err != nil {
		return s, fmt.Errorf("open database: %w", err)
	}
	hdr, err := readDatabaseHeader(file.f)
	if err == io.EOF {
		return s, errNoDatabase
	} else if err != nil {
		return s, fmt.Errorf("open database %s: %w", path, err)
	}
	if !hdr.wal {
		return s, fmt.Errorf("open database %s: %w: execute PRAGMA journal_mode=WAL on it once", path, ErrNotWAL)
	}
	s.pageSize, s.capt.database = hdr.pageSize, file.f
	if s.pool, err = openSQL(path); err != nil {
		return s, err
	}
	s.keep = keeper{
		open: func(ctx context.Context) (sqliteConn, error) {
			c, err := openConn(ctx, s.pool)
			if err != nil {
				return nil, fmt.Errorf("open connection to %s: %w", path, err)
			}
			return c, nil
		},
		capture: s.capture,
		counted: s.counted,
	}
	if err := s.keep.begin(ctx); err != nil {
		return s, err
	}
	if s.walInfo, err = os.Stat(walPath); err != nil {
		return s, fmt.Errorf("open database: %w", err)
	}
	if err := s.capt.resume(); err != nil {
		return s, fmt.Errorf("resume: %w", err)
	}
	return s, nil
}

// close ends the pin and closes the connections. The WAL stays in place.
func (s *session) close() error {
	err := s.keep.close()
	if s.pool != nil {
		err = errors.Join(err, s.pool.Close())
	}
	if s.file != nil {
		s.file.disuse(s.path)
		err = errors.Join(err, s.file.release())
		s.file = nil
	}
	return err
}

// Why a session must end.
var (
	errFileReplaced = errors.New("database file was renamed over or deleted")
	errWALReplaced  = errors.New("wal was deleted or replaced")
)

// verify checks that the paths still name the files that the session opened,
// and that the pin stands.
func (s *session) verify() error {
	if ok, err := isFile(s.path, s.file.info); err != nil {
		return err
	} else if !ok {
		return errFileReplaced
	}
	if ok, err := isFile(s.walPath, s.walInfo); err != nil {
		return err
	} else if !ok {
		return errWALReplaced
	}
	return s.keep.check()
}

// isFile reports whether path names the file that info describes.
func isFile(path string, info fs.FileInfo) (bool, error) {
	got, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return os.SameFile(got, info), nil
}

// capture copies what is committed and reports it.
func (s *session) capture() error {
	got, err := s.capt.capture()
	s.pace.captured(time.Now(), got.bytes/int64(WALFrameHeaderSize+max(s.pageSize, minPageSize)))
	if got != (captured{}) {
		if got.restarts > 0 || got.generation != "" {
			s.load = checkpointLoad{}
		}
		if got.generation != "" {
			s.backfilled = Pos{}
		}
		if h := s.capt.cursor.header; !h.isZero() {
			s.pageSize = h.pageSize
		}
		s.onCapture(got)
	}
	return err
}

// loadNow completes the numbers that the next checkpoint depends on.
func (s *session) loadNow() checkpointLoad {
	l := s.load
	l.pages = s.capt.cursor.frames()
	l.backfilled = s.capt.pos == s.backfilled
	l.growth, l.burst = s.pace.growth(), s.pace.within(burstTime)
	l.age = time.Since(s.checkpoint)
	l.snapshots = s.snapshots
	return l
}

// untilDue returns how long the WAL is expected to take to the next automatic
// checkpoint, or to a capture that leaves little to do for it.
func (s *session) untilDue(p checkpointPolicy) time.Duration {
	l := s.loadNow()
	if l.backfilled { // the next commit restarts the WAL
		l = checkpointLoad{growth: l.growth, burst: l.burst, snapshots: l.snapshots}
	}
	return s.pace.until(min(max(p.dueAt(l)-l.pages, 0), p.small()))
}

// catchUp runs a barrier if writers are so far ahead that only the write lock
// keeps the WAL below its maximum.
func (s *session) catchUp(ctx context.Context, p checkpointPolicy) error {
	from, to := p.farBehind(WALFrameHeaderSize + max(s.pageSize, minPageSize))
	if from <= 0 || from >= to || p.beyond(s.loadNow()) {
		return nil
	}
	if ok, err := s.capt.ahead(from, to); err != nil || !ok {
		return err
	}
	return s.barrier(ctx)
}

// autoCheckpoint runs the tier that is due, and of the highest, which takes
// several attempts, the first. Unless that would let the WAL outgrow its
// maximum, most of the work is done beside the writers, and a barrier follows at
// once if they went on meanwhile. Locks that others hold are no error: the next
// capture sees how far it came.
func (s *session) autoCheckpoint(ctx context.Context, p checkpointPolicy) (tier checkpointTier, err error) {
	l := s.loadNow()
	if tier = p.due(l); tier == tierNone {
		return tier, nil
	}
	s.load.cooperate = l.pages
	if tier == tierCooperate || tier == tierBarrier && !p.outrun(l) {
		s.syncAhead(p, l)
		if err := s.cooperate(ctx); err != nil {
			return tier, err
		}
		l = s.loadNow()
		next := p.due(l)
		if next < tierBarrier {
			return tier, nil
		}
		tier = next
	}
	s.load.barrier = l.pages
	if tier == tierRestart {
		s.load.restart = l.pages
	}
	// What is captured now is not left to do with writers kept out.
	if !p.outrun(l) {
		if err := s.keep.capture(); err != nil {
			return tier, err
		}
		s.syncAhead(p, l)
	}
	return tier, s.barrier(ctx)
}

// syncAhead makes the WAL of fast writers durable beside them, before a
// checkpoint has to do that: the host's own, or a barrier that keeps them out.
// Where the disk is slow, they would outrun it. An error is the checkpoint's to
// report, which syncs the WAL itself.
func (s *session) syncAhead(p checkpointPolicy, l checkpointLoad) {
	if l.pages <= p.small() || p.burst(l) == 0 {
		return
	}
	if p.max > 0 && l.pages+2*s.pace.within(s.pace.sync) > int64(p.max) {
		s.pace.synced(0)
		return
	}
	began := time.Now()
	if err := syncFile(s.capt.fs, s.walPath); err != nil {
		tracef("sync wal: %v", err)
	}
	s.pace.synced(time.Since(began))
}

// cooperate checkpoints beside the writers.
func (s *session) cooperate(ctx context.Context) error {
	s.checkpoint = time.Now()
	_, err := s.keep.cooperate(ctx)
	s.pace.checkpointed(time.Since(s.checkpoint))
	return s.tolerate(err)
}

// barrier makes one attempt to let the WAL restart.
func (s *session) barrier(ctx context.Context) error {
	s.checkpoint = time.Now()
	_, err := s.keep.barrier(ctx, time.Now().Add(lockWait))
	s.pace.checkpointed(time.Since(s.checkpoint))
	return s.tolerate(err)
}

// lockWait bounds how long one attempt waits for the database's write lock:
// captures wait meanwhile.
const lockWait = 100 * time.Millisecond

// counted learns from a checkpoint what of the WAL SQLite knows of, and up to
// where that is in the database file.
func (s *session) counted(r checkpointResult) error {
	if r.complete() && int64(r.Log) == s.capt.cursor.frames() {
		s.backfilled = s.capt.pos
	}
	return s.capt.published(int64(r.Log))
}

// tolerate drops SQLite's busy error, unless it cost the pin.
func (s *session) tolerate(err error) error {
	if isBusy(err) && !errors.Is(err, errPinLost) {
		tracef("%s: checkpoint: %v", s.path, err)
		return nil
	}
	return err
}

// tryCheckpoint makes one attempt at a checkpoint for the host.
func (s *session) tryCheckpoint(ctx context.Context, mode string) (done bool, err error) {
	s.checkpoint = time.Now()
	done, err = s.keep.attempt(ctx, mode, lockWait)
	if done && err == nil && mode == CheckpointModeTruncate && s.capt.proof == pinned {
		s.capt.proof = truncated
	}
	return done, err
}
