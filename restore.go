package litestream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"example.com/litestream/internal/atomicfile"
	"example.com/litestream/internal/fsys"
)

// DefaultRestoreParallelism is how many files a restore reads from the replica
// at a time unless told otherwise.
const DefaultRestoreParallelism = 8

// abandonedAfter is how long an unfinished restore of another process must
// have been left alone before the next one takes it for the rubbish of a crash.
const abandonedAfter = 5 * time.Minute

// restoreAttempts bounds how often a restore plans again when retention
// deletes what it planned to read.
const restoreAttempts = 3

// RestoreOptions say how a database is restored. The zero value is ready for
// use.
type RestoreOptions struct {
	// Mode is the permissions of the restored file, before umask. 0 means 0600.
	Mode os.FileMode

	// Uid and Gid are the owner and group to set on the restored file. Each is
	// left to the operating system unless it is above 0: what root restores
	// belongs to root anyway.
	Uid, Gid int

	// Parallelism is how many files are read from the replica at a time. 0
	// means DefaultRestoreParallelism.
	Parallelism int

	// Logger receives a line per restore, which begins with LogPrefix, and one
	// for each generation that had to be skipped. nil means one that writes to
	// LogWriter.
	Logger    *log.Logger
	LogPrefix string

	// Progress, if not nil, is called now and then, by one goroutine at a
	// time. The restore waits for it.
	Progress func(RestoreProgress)

	// IntegrityCheck is what SQLite checks of the restored file before it
	// appears under its name.
	IntegrityCheck IntegrityCheck
}

// NewRestoreOptions returns the defaults, spelled out.
func NewRestoreOptions() RestoreOptions {
	return RestoreOptions{Mode: 0o600, Parallelism: DefaultRestoreParallelism}
}

// IntegrityCheck is a check by SQLite of a whole database.
type IntegrityCheck int

// Checks of a restored database. The content of a replica is verified by
// checksums in any case.
const (
	IntegrityCheckNone  IntegrityCheck = iota
	IntegrityCheckQuick                // PRAGMA quick_check: no comparison of indexes with tables
	IntegrityCheckFull                 // PRAGMA integrity_check
)

// RestoreStage is what a restore is doing.
type RestoreStage string

// Stages of a restore, in their order. A restore that has to plan again begins
// again.
const (
	RestoreStageFetch RestoreStage = "fetch" // reading from the replica, and writing pages
	RestoreStageCheck RestoreStage = "check" // RestoreOptions.IntegrityCheck
	RestoreStageDone  RestoreStage = "done"  // the file has its name
)

// RestoreProgress tells how far a restore is.
type RestoreProgress struct {
	Stage RestoreStage
	Done  int64 // compressed bytes read
	Total int64 // compressed bytes in the plan, as the replica lists them
}

// RestoreLatest restores the newest state of a replica to filename and returns
// its position. The directory must exist. Nothing at filename is touched: if
// it, or a -wal, -shm or -journal beside it, exists, the error matches
// fs.ErrExist. After an error nothing is left behind.
//
// When the replica is empty the error matches ErrNoGeneration or
// ErrNoSnapshots, as that of [PlanRestore]: a host can start fresh then, and
// should stop on any other error. Content that fails verification is a
// *ChecksumError that names the snapshot or segment.
func RestoreLatest(ctx context.Context, client ReplicaClient, filename string, opt RestoreOptions) (Pos, error) {
	return RestoreAt(ctx, client, filename, time.Time{}, opt)
}

// RestoreAt is like [RestoreLatest], but restores what the replica had stored
// at t: nothing that was stored later, at the granularity of segments. The zero
// time means the newest state; a time before the first snapshot is an error.
func RestoreAt(ctx context.Context, client ReplicaClient, filename string, t time.Time, opt RestoreOptions) (Pos, error) {
	return newRestorer(client, filename, opt).run(ctx, func() (*RestorePlan, error) {
		return PlanRestore(ctx, client, t)
	})
}

// Restore is like [RestoreLatest], but restores a snapshot of one generation
// and the WAL indexes from its own up to targetIndex. An index that the replica
// does not have is a *WALNotFoundError; the snapshot's own may be absent if
// targetIndex is the same, since the WAL may have been empty.
func Restore(ctx context.Context, client ReplicaClient, filename, generation string, snapshotIndex, targetIndex int, opt RestoreOptions) (err error) {
	_, err = newRestorer(client, filename, opt).run(ctx, func() (*RestorePlan, error) {
		if !IsGenerationName(generation) {
			return nil, fmt.Errorf("invalid generation %q", generation)
		}
		if snapshotIndex < 0 || targetIndex < snapshotIndex {
			return nil, fmt.Errorf("cannot restore from index %d to index %d", snapshotIndex, targetIndex)
		}
		infos, err := listGeneration(ctx, client, generation)
		if err != nil {
			return nil, err
		}
		return planIndex(infos, snapshotIndex, targetIndex)
	})
	return err
}

// RestoreSnapshot writes a snapshot alone to filename, without the WAL that
// completes it: by itself it is a consistent database only if no transaction
// was checkpointed while it was taken. Mode, uid and gid are those of
// [RestoreOptions].
func RestoreSnapshot(ctx context.Context, client ReplicaClient, filename, generation string, index int, mode os.FileMode, uid, gid int) error {
	r := newRestorer(client, filename, RestoreOptions{Mode: mode, Uid: uid, Gid: gid})
	r.quiet = true
	_, err := r.run(ctx, func() (*RestorePlan, error) {
		if !IsGenerationName(generation) {
			return nil, fmt.Errorf("invalid generation %q", generation)
		}
		if index < 0 {
			return nil, fmt.Errorf("invalid snapshot index %d", index)
		}
		return newRestorePlan(SnapshotInfo{Generation: generation, Index: index}, nil), nil
	})
	return err
}

// restorer carries out plans until one succeeds.
type restorer struct {
	fsys     fsys.FS
	client   ReplicaClient
	filename string
	opt      RestoreOptions
	quiet    bool
	memory   int64 // for WAL bytes; beyond it scratch files are used
}

func newRestorer(client ReplicaClient, filename string, opt RestoreOptions) *restorer {
	if opt.Mode == 0 {
		opt.Mode = 0o600
	}
	if opt.Parallelism == 0 {
		opt.Parallelism = DefaultRestoreParallelism
	}
	if opt.Logger == nil {
		opt.Logger = newLogger("litestream: ")
	}
	return &restorer{fsys: fsys.OS, client: client, filename: filename, opt: opt, memory: walMemoryLimit}
}

func (r *restorer) run(ctx context.Context, plan func() (*RestorePlan, error)) (pos Pos, err error) {
	defer func() {
		if err != nil {
			pos, err = Pos{}, fmt.Errorf("restore %s: %w", r.filename, err)
		}
	}()
	if isNil(r.client) {
		return Pos{}, errNoClient
	}
	switch opt := r.opt; {
	case opt.Mode&^fs.ModePerm != 0:
		return Pos{}, fmt.Errorf("option Mode is %#o; it must be permissions alone", opt.Mode)
	case opt.Parallelism < 0:
		return Pos{}, fmt.Errorf("option Parallelism is %d; it must not be negative", opt.Parallelism)
	case opt.IntegrityCheck < IntegrityCheckNone || opt.IntegrityCheck > IntegrityCheckFull:
		return Pos{}, fmt.Errorf("option IntegrityCheck is %d; it must be one of the constants", opt.IntegrityCheck)
	}
	if r.filename == "" {
		return Pos{}, errors.New("no filename")
	}
	dir := filepath.Dir(r.filename)
	if _, err := r.fsys.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return Pos{}, fmt.Errorf("directory %s must exist: %w", dir, err)
	} else if err != nil {
		return Pos{}, err
	}
	if err := atomicfile.SweepVersions(r.fsys, r.filename, abandonedAfter); err != nil {
		tracef("restore %s: %v", r.filename, err) // no reason not to restore
	}
	for attempt := 1; ; attempt++ {
		if err := refuseExisting(r.fsys, r.filename, ""); err != nil {
			return Pos{}, err
		}
		if err := refuseLeftovers(r.fsys, r.filename); err != nil {
			return Pos{}, err
		}
		start := time.Now()
		p, err := plan()
		if err != nil {
			return Pos{}, err
		}
		pos, err := r.execute(ctx, p)
		if vanished(err) && attempt < restoreAttempts {
			tracef("restore %s: planning again: %v", r.filename, err)
			continue
		}
		if err == nil && !r.quiet {
			for _, skipped := range p.Skipped {
				r.opt.Logger.Printf("%srestore: skipped %v", r.opt.LogPrefix, skipped)
			}
			r.opt.Logger.Printf("%srestored %s to %s, %d files in %s", r.opt.LogPrefix, r.filename, pos, len(p.Segments)+1, time.Since(start).Round(time.Millisecond))
		}
		return pos, err
	}
}

// refuseExisting fails if there is a file name+suffix for one of the suffixes.
func refuseExisting(fsy fsys.FS, name string, suffixes ...string) error {
	for _, suffix := range suffixes {
		_, err := fsy.Lstat(name + suffix)
		if err == nil {
			return &fs.PathError{Op: "create", Path: name + suffix, Err: fs.ErrExist}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// refuseLeftovers is refuseExisting for a database that is not there: SQLite
// would apply to a new one what lies beside its name.
func refuseLeftovers(fsy fsys.FS, name string) error {
	err := refuseExisting(fsy, name, "-wal", "-shm", "-journal")
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: it is left over from a database that is gone; remove it", err)
	}
	return err
}

// execute builds the database under a temporary name and publishes it.
func (r *restorer) execute(ctx context.Context, plan *RestorePlan) (pos Pos, err error) {
	meter := &progressMeter{fn: r.opt.Progress, cur: RestoreProgress{Stage: RestoreStageFetch, Total: plan.Size}}
	meter.report()
	opt := atomicfile.Options{Mode: r.opt.Mode, Uid: ownerID(r.opt.Uid), Gid: ownerID(r.opt.Gid), Durable: true}
	err = atomicfile.Create(r.fsys, r.filename, opt, func(f fsys.File) error {
		b := &restoreBuild{
			restorer: r,
			plan:     plan,
			fetcher:  newFetcher(r.client, r.opt.Parallelism, meter),
			file:     &pageFile{f: f, base: snapshotName(plan.Generation, plan.Snapshot.Index)},
			scratch:  f.Name(),
		}
		b.memory.Store(r.memory)
		if pos, err = b.fill(ctx); err != nil {
			return err
		}
		if r.opt.IntegrityCheck != IntegrityCheckNone {
			meter.enter(RestoreStageCheck)
			if err := checkIntegrity(ctx, f.Name(), r.opt.IntegrityCheck); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return refuseExisting(r.fsys, r.filename, "-wal", "-shm", "-journal")
	})
	if err == nil {
		meter.enter(RestoreStageDone)
	}
	return pos, err
}

// ownerID maps the public convention, 0 for none, to that of chown.
func ownerID(id int) int {
	if id <= 0 {
		return -1
	}
	return id
}

// restoreBuild fills one file by one plan.
type restoreBuild struct {
	*restorer
	plan    *RestorePlan
	fetcher *fetcher
	file    *pageFile
	scratch string       // prefix of scratch files' names
	memory  atomic.Int64 // bytes left for WAL images
}

// fill writes every page and returns the position reached.
func (b *restoreBuild) fill(ctx context.Context) (pos Pos, err error) {
	g, gctx := errgroup.WithContext(ctx)
	pos = b.plan.Pos
	if len(b.plan.Segments) > 0 {
		g.Go(func() (err error) {
			pos.Offset, err = b.applyChain(gctx)
			return err
		})
	}
	g.Go(func() error {
		return b.file.writeSnapshot(gctx, b.fetcher, b.plan.Generation, b.plan.Snapshot.Index)
	})
	if err := g.Wait(); err != nil {
		return Pos{}, err
	}
	if err := b.file.finish(); err != nil {
		return Pos{}, err
	}
	return pos, nil
}

// applyChain applies the WAL indexes, newest first, while it loads older ones.
// It returns the offset at which the newest ends.
func (b *restoreBuild) applyChain(ctx context.Context) (end int64, err error) {
	indexes := segmentsByIndex(b.plan.Segments)
	images := startAhead(ctx, aheadJobs[*walImage]{
		n:     len(indexes),
		width: b.opt.Parallelism,
		run: func(ctx context.Context, i int) (*walImage, error) {
			segments := indexes[len(indexes)-1-i]
			pos := segments[0].Pos()
			m := newWALImage(segmentName(pos), b.fsys, b.scratch+"-"+FormatIndex(pos.Index)+atomicfile.TempExt, &b.memory)
			if err := m.load(ctx, b.fetcher, segments); err != nil {
				return nil, errors.Join(err, m.release())
			}
			return m, nil
		},
		discard: (*walImage).release,
	})
	defer func() { err = errors.Join(err, images.close()) }()
	headers := make(map[[WALHeaderSize]byte]string) // to the name that it was first seen in
	for i := range indexes {
		m, err := images.next(ctx)
		if err != nil {
			return 0, err
		}
		if i == 0 {
			end = m.commit
		}
		err = b.file.applyIndex(ctx, m)
		if other, ok := headers[m.cursor.header.raw]; ok && err == nil {
			err = &ChecksumError{Path: m.name, Err: fmt.Errorf("is of the same wal as %s", other)}
		}
		headers[m.cursor.header.raw] = m.name
		if err := errors.Join(err, m.release()); err != nil {
			return 0, err
		}
	}
	return end, nil
}

// progressMeter calls RestoreOptions.Progress at each stage and, in between,
// each time another 1/256 of the plan was read.
type progressMeter struct {
	fn func(RestoreProgress) // may be nil

	mu       sync.Mutex // held while fn runs
	cur      RestoreProgress
	reported int64
}

func (m *progressMeter) add(n int64) {
	if m == nil || m.fn == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cur.Done += n
	if m.cur.Done-m.reported > m.cur.Total/256 {
		m.reported = m.cur.Done
		m.fn(m.cur)
	}
}

func (m *progressMeter) enter(stage RestoreStage) {
	m.mu.Lock()
	m.cur.Stage = stage
	m.mu.Unlock()
	m.report()
}

func (m *progressMeter) report() {
	if m.fn == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fn(m.cur)
}
