package litestream

import "time"

// walPace predicts by how much the WAL grows while a checkpoint runs beside the
// writers, which nobody holds back.
type walPace struct {
	perSecond float64 // frames captured, of late
	since     time.Time
	frames    int64 // captured since then

	took time.Duration // by a checkpoint, the longest of late; 0 if there was none
	sync time.Duration // the same of the WAL's fsync beside the writers
}

const (
	paceWindow     = 5 * time.Millisecond // shorter measurements say little
	unknownTook    = 1 * time.Second      // until a checkpoint was measured
	tookDecay      = 64                   // a long checkpoint is forgotten by this part with each
	paceForgetting = 2                    // a rate by half with each window
)

// captured notes frames that were captured now.
func (p *walPace) captured(now time.Time, frames int64) {
	if p.since.IsZero() {
		p.since = now
	}
	p.frames += frames
	d := now.Sub(p.since)
	if d < paceWindow {
		return
	}
	p.perSecond += (float64(p.frames)/d.Seconds() - p.perSecond) / paceForgetting
	p.since, p.frames = now, 0
}

// checkpointed notes how long a checkpoint took.
func (p *walPace) checkpointed(d time.Duration) {
	p.took = max(d, p.took-p.took/tookDecay)
}

// synced notes how long an fsync of the WAL took, 0 if it was left out.
func (p *walPace) synced(d time.Duration) {
	p.sync = max(d, p.sync-p.sync/tookDecay)
}

// growth is the prediction, in frames.
func (p *walPace) growth() int64 {
	took := p.took
	if took == 0 {
		took = unknownTook
	}
	return int64(p.perSecond * took.Seconds())
}

// within returns by how many frames the WAL grows in d.
func (p *walPace) within(d time.Duration) int64 { return int64(p.perSecond * d.Seconds()) }

// until returns how long the WAL takes to grow by some frames.
func (p *walPace) until(frames int64) time.Duration {
	const never = time.Hour
	if p.perSecond <= 0 || float64(frames) > p.perSecond*never.Seconds() {
		return never
	}
	return time.Duration(float64(frames) / p.perSecond * float64(time.Second))
}
