package litestream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"example.com/litestream/internal/atomicfile"
)

// snapshotRecord takes the snapshot and returns its record.
func (s *streamSource) snapshotRecord() (*StreamRecordHeader, error) {
	s.snapshot.Lock()
	defer s.snapshot.Unlock()
	size, err := s.takeSnapshot(s.snapshot.ctx)
	switch {
	case s.ctx.Err() != nil:
		return nil, s.ended()
	case s.snapshot.ctx.Err() != nil:
		return nil, ErrDBClosed
	case err != nil:
		return nil, err
	}
	hdr := s.header(StreamRecordTypeSnapshot, size)
	hdr.Flags = s.partial(s.pos)
	return hdr, s.setBody(io.NopCloser(io.NewSectionReader(s.snapshot.file, 0, size)))
}

// takeSnapshot brings the database, compressed, to a file: a slow reader does
// not hold the pin. The slot comes first: who waits for it must not hold one
// either.
func (s *streamSource) takeSnapshot(ctx context.Context) (size int64, err error) {
	if err := takeSnapshotSlot(ctx); err != nil {
		return 0, err
	}
	pin, err := s.pin(ctx)
	if err != nil {
		releaseSnapshotSlot()
		return 0, err
	}
	st := pin.streamInSlot(ctx)
	size, err = s.spool(st)
	if err = errors.Join(err, st.Close()); err != nil {
		return 0, errors.Join(err, s.dropSnapshot())
	}
	return size, nil
}

// pin pins the database, and makes the pin's position the stream's.
func (s *streamSource) pin(ctx context.Context) (pin *snapshotPin, err error) {
	err = s.db.withSession(ctx, func(session *session) (err error) {
		if err := session.capture(); err != nil {
			return err
		}
		if session.capt.pos.IsZero() {
			return ErrNoGeneration
		}
		if session.pageSize != s.pageSize {
			return io.EOF // so it is another generation
		}
		if pin, err = s.db.pin(ctx, session); err == nil {
			s.target = pin.pos
			s.begin(pin.pos.Truncate()) // before anything can be pruned (I7)
		}
		return err
	})
	return pin, notCaptured(err)
}

// spool copies the snapshot to a file, which dropSnapshot removes.
func (s *streamSource) spool(r io.Reader) (size int64, err error) {
	name := filepath.Join(string(s.db.meta), fmt.Sprintf("stream-%d%s", spoolSeq.Add(1), atomicfile.TempExt))
	f, err := s.db.fs.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		s.snapshot.file = f
		size, err = io.Copy(f, r)
	}
	if err != nil {
		return 0, fmt.Errorf("spool snapshot: %w", err)
	}
	return size, nil
}

// snapshotWasRead gives its room on the disk back, long before the stream ends.
// What fails is left to the next Open of the DB.
func (s *streamSource) snapshotWasRead() {
	s.snapshot.Lock()
	defer s.snapshot.Unlock()
	if err := s.dropSnapshot(); err != nil {
		tracef("%s: remove the snapshot of a stream: %v", s.db.path, err)
	}
}

// dropSnapshot removes the file of the snapshot, if there is one. The next Open
// of the DB may have done that. s.snapshot is locked.
func (s *streamSource) dropSnapshot() error {
	f := s.snapshot.file
	if f == nil {
		return nil
	}
	s.snapshot.file = nil
	return errors.Join(f.Close(), removeIfExists(s.db.fs, f.Name()))
}

// joinSnapshot waits until no snapshot is being taken.
func (s *streamSource) joinSnapshot() {
	s.snapshot.Lock()
	defer s.snapshot.Unlock()
}
