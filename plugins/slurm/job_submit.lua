-- Slurm's job_submit filter for liver-slurm's jobs; README.md beside this file says how to install it. Every other
-- job is left as it is.
--
-- A warning signal (--signal) cannot be set from here: liver-slurm's batch scripts ask for it themselves.

-- ---- what a site sets ---------------------------------------------------------------------------------------------

local LIVE_PARTITION = "live"
-- Where a guaranteed job goes that names no partition; nil: the cluster's default.

local STANDBY_PARTITIONS = { "scavenger" }
-- Where Slurm may take nodes back. Standbys that name no partition go to the first; nothing else is a place for them.

local STANDBY_MINUTES = 24 * 60
-- Time limit of a standby that names none, and the longest that one may ask for. Backfill goes wild without a limit.

-- -------------------------------------------------------------------------------------------------------------------

-- Comment of a user's newest guaranteed job: how a heterogeneous job's further components, which come without the batch
-- script, are known. It is a run directory, so no two jobs have the same.
local live_comments = {}

local function has(text, part)
    return text ~= nil and string.find(text, part, 1, true) ~= nil
end

local function is_reclaimable(partition)
    for _, name in ipairs(STANDBY_PARTITIONS) do
        if name == partition then
            return true
        end
    end
    return false
end

-- The names in "a,b" for which is_reclaimable() is `reclaimable`; nil if there are none.
local function partitions_that_are(reclaimable, names)
    local found = {}
    for name in string.gmatch(names, "[^,]+") do
        if is_reclaimable(name) == reclaimable then
            found[#found + 1] = name
        end
    end
    return #found > 0 and table.concat(found, ", ") or nil
end

-- "live", "standby" or nil: what kind of job of ours this is, by what its batch script runs.
local function kind_of(job, user)
    if has(job.script, "liver_slurm.coordinator") then
        live_comments[user] = job.comment
        return "live"
    end
    local component = job.het_job_offset
    if component ~= nil and component > 0 and component < slurm.NO_VAL then
        return job.comment ~= nil and job.comment == live_comments[user] and "live" or nil
    end
    if has(job.script, "liver_slurm.worker") and has(job.script, "--role standby") then
        return "standby"
    end
    -- A standby that a coordinator of an earlier version submits.
    if has(job.script, "liver_slurm.plugins.submitit") and job.comment ~= nil and has(job.name, "-standby") then
        return "standby"
    end
    return nil
end

local function refuse(text, ...)
    slurm.log_user("liver-slurm: " .. string.format(text, ...))
    return slurm.ERROR
end

local function submit_live(job)
    job.partition = job.partition or LIVE_PARTITION
    job.comment = job.comment or "liver-slurm live"
    local wrong = job.partition ~= nil and partitions_that_are(true, job.partition)
    if wrong then
        return refuse("no part of a guaranteed job can be in %s: Slurm would take back the whole job at once; "
            .. "name the partition in standby.partitions instead", wrong)
    end
    return slurm.SUCCESS
end

local function submit_standby(job)
    job.partition = job.partition or STANDBY_PARTITIONS[1]
    job.comment = job.comment or "liver-slurm standby"
    local wrong = partitions_that_are(false, job.partition)
    if wrong then
        return refuse("standbys belong where Slurm can take them back (%s), not in %s; see standby.partitions",
            table.concat(STANDBY_PARTITIONS, ", "), wrong)
    end
    -- Requeued, it would come back with the id of a job that its run has given up.
    job.requeue = 0
    if job.time_limit == slurm.NO_VAL then
        job.time_limit = STANDBY_MINUTES
    elseif job.time_limit > STANDBY_MINUTES then
        job.time_limit = STANDBY_MINUTES
        slurm.log_user("liver-slurm: the time limit of standbys is %d minutes here", STANDBY_MINUTES)
    end
    return slurm.SUCCESS
end

function slurm_job_submit(job, partitions, user)
    local kind = kind_of(job, user)
    if kind == "live" then
        return submit_live(job)
    elseif kind == "standby" then
        return submit_standby(job)
    end
    return slurm.SUCCESS
end

-- Slurm wants this function too. Changes of a job that was submitted are its owner's.
function slurm_job_modify(job, record, partitions, user)
    return slurm.SUCCESS
end

return slurm.SUCCESS
